"""Needs: every composition with its files read and its code's digest, and what all of them need of calibration.

A stage of its own, and a cheap one, so that DVC can tell: a change among the methods that leaves these bytes as they
were re-runs neither the gradients nor the scores of other methods.
"""

from __future__ import annotations

from pathlib import Path

from stages._code import source_digest
from stages._project import Project, Root, main
from zpruner.artifacts.work import digest_of, write_sealed_json
from zpruner.pruning.composition import compose, statistics_of
from zpruner.types import CHANNEL_SUMS, Stat


def run(root: Root = Path()) -> None:
    """Write data/needs: inputs.json, gradients.json, and methods/METHOD.json for every method.

    Args:
        root: the project folder.
    """
    project = Project.open(root)
    methods = {label: settings.model_dump(mode="json") for label, settings in project.params.methods.items()}
    compositions = {label: compose(settings) for label, settings in project.params.methods.items()}
    calibration = project.params.calibration
    needed = statistics_of(compositions.values(), calibration.propagation)
    inputs = CHANNEL_SUMS | needed - {Stat.GRAD_SQ}
    if calibration.gram != "auto":
        inputs = inputs | {Stat.GRAM} if calibration.gram else inputs - {Stat.GRAM}
    with project.work("needs", methods=digest_of(methods), inputs=sorted(inputs)) as work:
        for label, composition in compositions.items():
            facts = {
                "composition": methods[label],
                "statistics": sorted(stat.value for stat in composition.needs),
                "code": source_digest(composition),
            }
            write_sealed_json(work.files / "methods" / f"{label}.json", facts)
        write_sealed_json(work.files / "inputs.json", {"statistics": sorted(inputs)})
        write_sealed_json(work.files / "gradients.json", {"gradients": Stat.GRAD_SQ in needed})
        work.publish(project.needs)


if __name__ == "__main__":
    main(run)
