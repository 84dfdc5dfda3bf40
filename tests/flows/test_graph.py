"""The graph that flows see is DVC's."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from flows.graph import Graph, Instance, read_graph, read_stale
from zpruner.errors import UnknownNameError


def chain(**needs: str) -> Graph:
    return Graph(
        Instance(name, f"python -m stages.{name}", frozenset(above.split()), None) for name, above in needs.items()
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_project(tmp_path_factory.mktemp("graph") / "p")


def test_the_graph_is_that_of_dvc(project: Path) -> None:
    graph = read_graph(project)
    listed = tiny.run(["dvc", "stage", "list", "--all", "--name-only"], project).stdout.split()
    assert set(graph) == set(listed)
    assert {"sources", "plan", "fetch@model", "report", "search/dvc.yaml:search"} <= set(listed)
    drawn = tiny.run(["dvc", "dag", "--mermaid"], project).stdout.splitlines()
    names = dict(line.strip().rstrip("]").split("[", 1) for line in drawn if "[" in line)
    names = {node: name.strip('"') for node, name in names.items()}
    edges = {tuple(names[node] for node in line.split("-->")) for line in map(str.strip, drawn) if "-->" in line}
    assert {(above, name) for name, one in graph.items() for above in one.needs} == edges


def test_everything_an_instance_needs_comes_before_it(project: Path) -> None:
    graph = read_graph(project)
    order = list(graph)
    assert all(order.index(above) < order.index(name) for name, one in graph.items() for above in one.needs)


def test_everything_is_stale_in_a_new_project(project: Path) -> None:
    graph = read_graph(project)
    assert read_stale(project, graph) == set(graph)


def test_the_search_is_no_part_of_the_pipeline(project: Path) -> None:
    graph = read_graph(project)
    own = {name for name in graph if name.startswith("search/dvc.yaml:")}
    assert own == {f"search/dvc.yaml:{stage}" for stage in ("plan", "sources", "text", "gradients", "search", "report")}
    assert set(graph.part(None)) == set(graph) - own
    needed = {"fetch@model", "generate", "fetch@calibration", "calibrate", "plan", "sources", "gradients"}
    assert set(graph.part(["search/dvc.yaml"])) == own | needed
    above = {"search/dvc.yaml:plan", "search/dvc.yaml:gradients"}
    assert set(graph.part(["search/dvc.yaml:gradients"])) == needed - {"calibrate"} | above
    assert read_stale(project, graph.part(None)) == set(graph) - own
    with pytest.raises(UnknownNameError, match=r"Did you mean 'search/dvc.yaml'"):
        graph.part(["search/dvc.yml"])


def test_labels_and_tags_come_from_the_command(project: Path) -> None:
    mask = read_graph(project)["mask@wanda-s24"]
    assert mask.stage == "mask"
    assert mask.labels == {"method": "wanda", "sparsity": "s24"}
    assert mask.tags == ["stage:mask", "method:wanda", "sparsity:s24"]
    assert read_graph(project)["evaluate_dense"].labels == {}


def test_above_and_below() -> None:
    graph = chain(a="", b="a", c="a", d="b c", e="")
    assert graph.above(["d"]) == {"a", "b", "c", "d"}
    assert graph.above(["b", "e"]) == {"a", "b", "e"}
    assert graph.below(["b"]) == {"b", "d"}
    assert graph.below([]) == set()
    assert {name: one.needs for name, one in graph.only(["b", "d"]).items()} == {"b": frozenset(), "d": {"b"}}


def test_a_target_may_be_a_stage_or_an_instance(project: Path) -> None:
    graph = read_graph(project)
    assert set(graph.resolve(["score", "report"])) == {"score@wanda", "score@zpruner", "report"}
    assert graph.resolve(["mask@wanda-s24"]) == ["mask@wanda-s24"]
    with pytest.raises(UnknownNameError, match="mask@wanda-s24"):
        graph.resolve(["mask@wanda-s42"])


def test_a_project_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="not inside of a DVC repository"):
        read_graph(tmp_path)
