"""Needs: every composition with its files read and its code's digest, and whether any of them needs gradients.

A stage of its own, and a cheap one, so that DVC can tell: a change among the methods that leaves these bytes as they
were re-runs neither the gradients nor the scores of other methods.
"""

from __future__ import annotations

from pathlib import Path

from stages._code import source_digest
from stages._project import Project, Root, main
from zpruner.artifacts.work import digest_of, write_sealed_json
from zpruner.pruning.composition import compose
from zpruner.types import Stat


def run(root: Root = Path()) -> None:
    """Write data/needs: gradients.json, and methods/METHOD.json for every method.

    Args:
        root: the project folder.
    """
    project = Project.open(root)
    methods = {label: settings.model_dump(mode="json") for label, settings in project.params.methods.items()}
    compositions = {label: compose(settings) for label, settings in project.params.methods.items()}
    with project.work("needs", methods=digest_of(methods)) as work:
        for label, composition in compositions.items():
            facts = {
                "composition": methods[label],
                "statistics": sorted(stat.value for stat in composition.needs),
                "code": source_digest(composition),
            }
            write_sealed_json(work.files / "methods" / f"{label}.json", facts)
        wanted = any(Stat.GRAD_SQ in composition.needs for composition in compositions.values())
        write_sealed_json(work.files / "gradients.json", {"gradients": wanted})
        work.publish(project.needs)


if __name__ == "__main__":
    main(run)
