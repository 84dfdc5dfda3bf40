import sys
from importlib.metadata import EntryPoint

import pytest

from zpruner.errors import DuplicateNameError, UnknownNameError
from zpruner.masks import REFINEMENTS
from zpruner.methods import METHODS
from zpruner.parts.registry import Registry
from zpruner.updates import UPDATES


class Tool:
    """What entries of the room subclass."""


FILES = {
    "__init__": "",
    "hammer": "from test_registry import Tool\nclass Hammer(Tool): ...\n",
    "pair": "from test_registry import Tool\nclass A(Tool): ...\nclass B(Tool): ...\n",
    "empty": "from test_registry import Tool\n",
    "imports": "from toolroom.hammer import Hammer\nclass Saw(Hammer): ...\n",
    "broken": "raise RuntimeError('imported although nobody asked')\n",
    "_shared": "from test_registry import Tool\nclass Hidden(Tool): ...\n",
}


@pytest.fixture
def room(tmp_path, monkeypatch):
    package = tmp_path / "toolroom"
    package.mkdir()
    for name, text in FILES.items():
        (package / f"{name}.py").write_text(text)
    (tmp_path / "toolplugin.py").write_text("from test_registry import Tool\nclass Drill(Tool): ...\nNUMBER = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield Registry("toolroom", Tool, "tool")
    for name in [name for name in sys.modules if name.split(".")[0] in ("toolroom", "toolplugin")]:
        del sys.modules[name]


@pytest.fixture
def plugins(monkeypatch):
    """Names and values of entry points that other packages would declare."""
    points = {}

    def entry_points(group):
        return [EntryPoint(name, value, group) for name, value in points.items()]

    monkeypatch.setattr("zpruner.parts.registry.entry_points", entry_points)
    return points


def test_a_file_is_a_name(room):
    assert room.names() == ["broken", "empty", "hammer", "imports", "pair"]
    assert room.find("hammer").__name__ == "Hammer"


def test_a_class_that_a_file_only_imports_does_not_count(room):
    assert room.find("imports").__name__ == "Saw"


@pytest.mark.parametrize(
    ("name", "message"), [("pair", "got 2 subclasses of Tool"), ("empty", "got 0 subclasses of Tool")]
)
def test_a_file_holds_exactly_one_class(room, name, message):
    with pytest.raises(DuplicateNameError, match=message):
        room.find(name)


def test_an_unknown_name_is_answered_with_the_nearest(room):
    with pytest.raises(
        UnknownNameError, match=r"tool: got 'hamer', expected a registered name\. Did you mean 'hammer'\?"
    ):
        room.find("hamer")


def test_a_name_far_from_all_is_answered_with_the_list(room):
    with pytest.raises(UnknownNameError, match="Known: broken, empty, hammer, imports, pair"):
        room.find("zzzzzzzz")


@pytest.mark.parametrize("name", ["_shared", "__init__", "hammer.Hammer", "", ".hammer", "../hammer"])
def test_what_is_no_public_file_is_unknown(room, name):
    with pytest.raises(UnknownNameError):
        room.find(name)


def test_another_package_adds_a_name(room, plugins):
    plugins["drill"] = "toolplugin:Drill"
    assert "drill" in room.names()
    assert room.find("drill").__name__ == "Drill"


def test_a_plugin_of_another_kind_is_refused(room, plugins):
    plugins["number"] = "toolplugin:NUMBER"
    with pytest.raises(UnknownNameError, match="tool 'number': got 3, expected a subclass of Tool"):
        room.find("number")


def test_a_plugin_cannot_take_a_file_s_name(room, plugins):
    plugins["hammer"] = "toolplugin:Drill"
    with pytest.raises(DuplicateNameError, match=r"tool 'hammer': got 2 registrations \(toolplugin:Drill\)"):
        room.find("hammer")


@pytest.mark.parametrize("registry", [METHODS, UPDATES, REFINEMENTS], ids=lambda registry: registry.group)
def test_every_file_of_the_library_s_rooms_is_a_good_entry(registry):
    assert [name for name, _ in registry.all()] == registry.names()


def test_the_published_methods_are_there():
    assert {"magnitude", "wanda", "ria", "zpruner"} <= set(METHODS.names())
    with pytest.raises(UnknownNameError, match=r"Did you mean 'wanda'\?"):
        METHODS.find("wnada")
