"""Check params.yaml before anything runs: keys, values, and the names and hyper-parameters of every method."""

from __future__ import annotations

from pathlib import Path

from stages._project import Project, Root, main
from zpruner.pruning.composition import compose_all


def run(root: Root = Path()) -> None:
    """Raise the first error of the settings; print nothing when there is none.

    Args:
        root: the project folder.
    """
    compose_all(Project.open(root).params)


if __name__ == "__main__":
    main(run)
