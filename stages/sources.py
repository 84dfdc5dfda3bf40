"""Sources: what lies outside the project and may change under the same name: local models and texts, other packages.

DVC runs this stage every time; it writes content hashes, so that nothing else runs while they stay what they are.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from stages._deciding import source_of
from stages._project import Project, Root, main
from zpruner.artifacts.work import checksum, digest_of
from zpruner.sources import Content, Fingerprints, LocalPath, parse_source


def run(root: Root = Path()) -> None:
    """Write data/sources: one file per model and text, and packages.json for packages that offer methods.

    Args:
        root: the project folder.
    """
    project = Project.open(root)
    fingerprints = Fingerprints(root / ".zpruner" / "fingerprints.json")
    for what in ("model", "calibration", "evaluation", *(["search"] if project.params.search else [])):
        source = parse_source(source_of(project.params, what))
        content = fingerprints.of(f"{what}.source", root / source.path) if isinstance(source, LocalPath) else ""
        Content(content=content).write(project.sources(what))
    Content(content=_packages()).write(project.sources("packages"))


def _packages() -> str:
    """Return a digest of the source files of every package that offers methods or other parts; empty without any."""
    groups = sorted(group for group in entry_points().groups if group.startswith("zpruner."))
    names = sorted({point.module.split(".")[0] for group in groups for point in entry_points(group=group)})
    found = {name: [checksum(file) for file in _files(name)] for name in names}
    return digest_of(found) if found else ""


def _files(package: str) -> list[Path]:
    spec = find_spec(package)
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [Path(str(spec.origin))]
    return [file for place in spec.submodule_search_locations for file in sorted(Path(place).rglob("*.py"))]


if __name__ == "__main__":
    main(run)
