"""Prints the kind and number of this machine's accelerators. Run in a child: to look is to load their libraries."""

import torch


def main() -> None:
    """Print e.g. `cuda 2`, or `cpu 0` where there is none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    print("cpu" if found is None else found.type, 0 if found is None else torch.accelerator.device_count())


if __name__ == "__main__":
    main()
