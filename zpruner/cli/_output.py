"""Where a command writes a checkpoint: whole, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from zpruner.errors import InvalidSettingError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def check_output(output: Path, force: bool) -> None:
    """Raise InvalidSettingError unless `output` can be written: it is new, or a checkpoint folder and `force`."""
    if not output.exists():
        place = next(folder for folder in output.absolute().parents if folder.exists())
        try:
            with TemporaryDirectory(dir=place, prefix=".zpruner-"):
                return
        except OSError as error:
            raise InvalidSettingError(
                f"--output {output}", f"{place}: {error.strerror}", "a place to write to", "Choose another folder."
            ) from None
    if not force:
        raise InvalidSettingError(
            f"--output {output}", "a path that exists", "a new folder", "Choose another, or add --force to replace it."
        )
    if not (output / "config.json").is_file():
        raise InvalidSettingError(
            f"--output {output}", "something that is no checkpoint folder", "one to replace", "Remove it yourself."
        )


def check_apart(output: Path, model: Path | None = None, **read: Path | None) -> None:
    """Raise InvalidSettingError where writing `output` would touch what a command reads, links followed.

    Args:
        output: what is written, or replaced.
        model: the checkpoint that is read: `output` may neither be it, hold it, nor lie in it.
        read: name -> another file or folder that is read, which `output` may not hold.
    """
    replaced = [output, *_beside(output.resolve())]
    inputs = {"MODEL": model, **read}
    for name, path in inputs.items():
        if path is None or not path.exists():
            continue
        if any(_within(path, folder) for folder in replaced):
            relation = "is" if _same(path, output) else "holds"
        elif path is model and _within(output, path):
            relation = "lies in"
        else:
            continue
        raise InvalidSettingError(
            f"--output {output}",
            f"a folder that {relation} {name} ({path})",
            "a folder apart from what is read",
            "Choose another folder.",
        )


def telling(output: Path) -> Callable[[], str]:
    """Return what says after Ctrl-C whether `output` was written from now on."""
    before = _identity(output)

    def told() -> str:
        written = _identity(output) not in (None, before)
        return f"Interrupted; OUT was {'written, and is whole' if written else 'not written'}."

    return told


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a folder from another of the same name; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _within(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder that is there, or lies in it."""
    return any(_same(place, folder) for place in (path.resolve(), *path.resolve().parents))


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


ORDERS = "neuron_orders.safetensors"
"""Of what was put into another order: layer that reads it -> int64, the old place of each."""


def save(
    model: PreTrainedModel,
    tokenizer: Any,
    output: Path,
    card: str,
    source: str,
    force: bool,
    orders: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Write the checkpoint beside `output` and rename it, so that `output` is whole or not there.

    With `orders` they are written, too, as ORDERS.

    Raises:
        DiskFullError: no space left.
    """
    from zpruner.checkpoint import write_manifest
    from zpruner.checkpoint.tensors import share_weights
    from zpruner.runtime.quiet import quiet

    with place(output, force) as staging, quiet():
        model.save_pretrained(staging)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        (staging / "README.md").write_text(card, encoding="utf-8")
        share_weights(staging)
        if orders:
            from safetensors.torch import save_file

            save_file({name: order.cpu() for name, order in orders.items()}, staging / ORDERS)
        write_manifest(staging, source)


def _beside(output: Path) -> tuple[Path, Path]:
    """Return where a checkpoint is built that becomes `output`, and where the one that it replaces waits."""
    return output.with_name(f".{output.name}.tmp"), output.with_name(f".{output.name}.old")


@contextmanager
def place(output: Path, force: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes `output`, whole, when the block ends without an error; or not at all.

    Raises:
        DiskFullError: no space left.
    """
    from zpruner.runtime.system_errors import system_errors_named

    output = output.resolve()  # "." has no name
    staging, old = _beside(output)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with system_errors_named(output):
            staging.mkdir(parents=True)
            yield staging
        check_output(output, force)
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)  # of a run that was killed before it could
            output.rename(old)
        staging.rename(output)
    finally:
        if old.exists() and not output.exists():  # interrupted between the two
            old.rename(output)
        for folder in (staging, old):
            shutil.rmtree(folder, ignore_errors=True)
