"""Check params.yaml before anything runs: keys, values, the names and hyper-parameters of every method.

Where the model is here already, also whether it has what the patterns remove.
"""

from __future__ import annotations

from pathlib import Path

from stages._project import Project, Root, main
from zpruner.model import take_inventory
from zpruner.model.empty import empty_model
from zpruner.pruning.compose import compose_all
from zpruner.pruning.fitting import check_fit, check_moved


def run(root: Root = Path()) -> None:
    """Raise the first error of the settings; print nothing when there is none.

    Args:
        root: the project folder.
    """
    project = Project.open(root)
    params = project.params
    compositions = {f"methods.{label}": found for label, found in compose_all(params).items()}
    if (project.dense / "config.json").is_file():
        model = empty_model(project.dense, trust_remote_code=params.model.trust_remote_code)
        inventory = take_inventory(model, params.model.blocks, params.model.ignore)
        patterns = {f"sparsities.{label}": params.pattern(label) for label in params.sparsities}
        check_fit(patterns, model, inventory)
        check_moved(compositions, patterns, model, inventory)


if __name__ == "__main__":
    main(run)
