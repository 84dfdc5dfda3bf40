"""Parts of a composition, and where they are found: a name is a file of the part's room, or another package's."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from types import ModuleType
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from zpruner.errors import DuplicateNameError, UnknownNameError, did_you_mean
from zpruner.parts.names import own_names
from zpruner.types import Stat


class Part(BaseModel):
    """What every part of a composition is: its fields are its settings, and it says what it reads and holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    needs: ClassVar[frozenset[Stat]] = frozenset()
    """The statistics that it reads."""
    workspace: ClassVar[int] = 0
    """Square float32 matrices of the input's width that it holds at once, beside the statistics."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Settings that had another name -> what they are called now."""

    def required(self) -> frozenset[Stat]:
        """Return the statistics that it reads under these settings."""
        return self.needs


T = TypeVar("T", bound=Part)


class Registry(Generic[T]):
    """The classes of one room, found by the name of the file that defines them.

    A file `zpruner/methods/wanda.py` holds the one class registered as `wanda`, so that adding a method is adding a
    file. Other packages add theirs through the entry-point group of the same name (`zpruner.methods`). Only the
    module asked for is imported.

    Args:
        group: the package and the entry-point group, e.g. `zpruner.methods`.
        base: the abstract class that every entry subclasses.
        noun: what an entry is called in messages.
    """

    def __init__(self, group: str, base: type[T], noun: str) -> None:
        self.group, self.base, self.noun = group, base, noun

    def names(self) -> list[str]:
        """Return every known name, sorted; nothing is imported but the room itself."""
        own = self._own_names()
        return sorted(own | {point.name for point in entry_points(group=self.group)})

    def find(self, name: str) -> type[T]:
        """Return the class registered as `name`.

        Raises:
            UnknownNameError: no such name, with the nearest known one.
            DuplicateNameError: the name is both a file of the room and another package's entry point.
        """
        plugins = [point for point in entry_points(group=self.group) if point.name == name]
        own = name in self._own_names()
        if len(plugins) + own > 1:
            raise DuplicateNameError(
                f"{self.noun} '{name}'",
                f"{len(plugins) + own} registrations ({', '.join(p.value for p in plugins)})",
                "one registration per name",
                "Rename the plugin's entry point, or uninstall it.",
            )
        if plugins:
            return self._check(name, plugins[0].load())
        if not own:
            raise UnknownNameError(self.noun, f"'{name}'", "a registered name", did_you_mean(name, self.names()))
        return self._only_class(name, importlib.import_module(f"{self.group}.{name}"))

    def all(self) -> Iterable[tuple[str, type[T]]]:
        """Yield every (name, class), importing them."""
        for name in self.names():
            yield name, self.find(name)

    def _own_names(self) -> set[str]:
        return own_names(self.group)

    def _only_class(self, name: str, module: ModuleType) -> type[T]:
        found = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, self.base) and value.__module__ == module.__name__
        ]
        if len(found) != 1:
            raise DuplicateNameError(
                f"{module.__name__}",
                f"{len(found)} subclasses of {self.base.__name__}",
                f"exactly one, registered as '{name}'",
                "Keep one per file; a file whose name starts with _ holds what they share.",
            )
        return found[0]

    def _check(self, name: str, value: object) -> type[T]:
        if not (isinstance(value, type) and issubclass(value, self.base)):
            raise UnknownNameError(
                f"{self.noun} '{name}'",
                repr(value),
                f"a subclass of {self.base.__name__}",
                "Let the entry point name the class.",
            )
        return value
