"""Every error class of the library.

Each message says where, what was got, what was expected and what to do, in one or two sentences.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from operator import index
from types import MappingProxyType

_SHOWN = 30
_QUOTED = 120
"""Characters of a value that a message quotes."""
_LINE = 400
"""Characters of a message's parts: a path may be long, a file that was taken for a name need not be shown."""
_SEARCHED = 10_000
"""Characters of a text that are searched for credentials before it is cut."""
_USER = re.compile(r"\b([a-z][a-z0-9+.-]*://)([^\s/?#@:]*?)((?::(?!\d+(?:[/?#\s]|$))|%3a)\S*)?@", re.IGNORECASE)
# Without a scheme's slashes, as scp writes it; `hf:NAME@REVISION` and DVC's `FILE.yaml:STAGE@LABEL` are none.
_BARE = re.compile(r"(?<![\w.:@-])(?!(?:hf|pip):|[\w.-]*\.yaml:)[^\s/:@'\"(]+:[^\s/@*]+@", re.IGNORECASE)
_QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?#'\"]*)\?(?:[^\s'\"]|['\"](?=\w))+", re.IGNORECASE)
_NAMED = re.compile(r"([?&;#][\w-]*(?:token|key|secret|passw|sig|auth|credential)[\w-]*=)[^\s&;'\"]+", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def mend(command: str = "dvc repro") -> str:
    """Return what helps against a damaged artifact that `command` writes: DVC would bring cached damage back."""
    return f"Run `zpruner doctor --mend`, then `{command}`."


MEND = mend()


class ZprunerError(Exception):
    """Base of all errors that a user can cause and mend.

    Args:
        where: the file, layer or setting concerned.
        got: the value or state found.
        expected: what would have been right.
        action: what the user can do about it.
    """

    def __init__(self, where: str, got: str, expected: str, action: str) -> None:
        self.where, self.got, self.expected, self.action = where, got, expected, action
        super().__init__(where, got, expected, action)

    wording: Mapping[str, str] = MappingProxyType({})
    """What `str` calls the settings that the message names (see `told`)."""

    def told(self, wording: Mapping[str, str]) -> str:
        """Return the message in the words of whom it reaches.

        Args:
            wording: a key of params.yaml, or a phrase with one in small letters -> what stands in its place, "in
                params.yaml" beside it included. Empty: the message is for the reader of params.yaml.
        """
        where, got, expected = (one_line(part, _LINE) for part in (self.where, self.got, self.expected))
        where, action = (_in_words(part, wording) for part in (where, without_credentials(self.action)))
        return _printable(f"{where}: got {got}, expected {expected}. {action}")

    def __str__(self) -> str:
        return self.told(self.wording)


class ZprunerWarning(UserWarning):
    """What was decided for the user, and what was left out."""


class InvalidSettingError(ZprunerError):
    """A setting in params.yaml (or an argument) is unknown, missing or out of range."""


class UnknownNameError(ZprunerError):
    """A name (method, update, ...) that no registry entry carries."""


class DuplicateNameError(ZprunerError):
    """Two registrations under one name."""


class InvalidPatternError(ZprunerError):
    """A sparsity that is neither a ratio in [0, 1) nor N:M with 0 < N < M, or that does not fit a layer."""


class MissingStatisticError(ZprunerError):
    """A method asks for a statistic that the calibration did not collect."""


class ShapeMismatchError(ZprunerError):
    """Tensors that belong together have shapes that do not fit."""


class NonFiniteError(ZprunerError):
    """NaN or infinity in weights, activations, gradients or scores of a named layer."""


class SourceError(ZprunerError):
    """A model or text that cannot be obtained or read from where params.yaml says it is."""


class HashMismatchError(SourceError):
    """A source whose SHA-256 is not the one in params.yaml."""


class TextTooShortError(SourceError):
    """A text with fewer tokens than the windows asked for need."""


class ArtifactError(ZprunerError):
    """A stored artifact that is missing, truncated, altered, or of another model or calibration."""


class ModelStructureError(ZprunerError):
    """A model whose decoder blocks or weights cannot be found or viewed."""


class IncompleteCheckpointError(SourceError, ModelStructureError):
    """A checkpoint that lacks a weight of its model, or has one of another shape."""


class SolverError(ZprunerError):
    """A factorisation or iteration that failed for a named layer."""


class DiskFullError(ZprunerError):
    """No space left where an artifact was to be written."""


class AccessError(ZprunerError):
    """A file or folder that the system does not let us read or write."""


class LockedError(ZprunerError):
    """Another process is working on the same artifact."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'?" for the nearest of `known`, or the list of them, cut where it is long."""
    names = sorted(set(known))
    if close := difflib.get_close_matches(name[:_QUOTED], names, n=1, cutoff=0.5):
        return f"Did you mean '{close[0]}'?"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"Known: {', '.join(names[:_SHOWN]) or 'none'}{more}."


def without_credentials(text: str, mark: str = "***") -> str:
    """Return a text whose addresses show no password, no token in place of a user, and no query string.

    Args:
        text: anything that may hold URLs.
        mark: what stands in their place; "": nothing, not even the characters around them.
    """

    def user(match: re.Match[str]) -> str:
        scheme, name, password = match.groups()
        if scheme.lower() in ("ssh://", "sftp://"):  # a name there is no secret
            return f"{scheme}{name}{f':{mark}' if mark and password else ''}@"
        return f"{scheme}{mark and f'{mark}@'}"

    text = _QUERY.sub(rf"\1{mark and f'?{mark}'}", _USER.sub(user, text))
    text = _BARE.sub(mark and f"{mark}@", text)
    return _HUB_TOKEN.sub(mark, _NAMED.sub(rf"\1{mark}", text))


def whole_number(name: str, value: object, least: int) -> int:
    """Return an argument as an int.

    Raises:
        InvalidSettingError: it is no whole number (a float, text or bool), or less than `least`.
    """
    try:
        number = None if isinstance(value, bool) else index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < least:
        raise InvalidSettingError(name, shown(value), f"a whole number, at least {least}", "Pass one.")
    return number


def shown(value: object) -> str:
    """Return a refused value as a message quotes it: on one line, cut where it is long."""
    try:
        return one_line(repr(value))
    except ValueError:  # Python writes out no integer of thousands of digits
        return f"{type(value).__name__} of thousands of digits"


def one_line(text: str, length: int = _QUOTED) -> str:
    """Return a text as one line of at most `length` characters and "...", without credentials or half of one."""
    line = without_credentials(" ".join(text[:_SEARCHED].splitlines()))
    return line if len(line) <= length and len(text) <= _SEARCHED else f"{line[:length]}..."


def _printable(text: str) -> str:
    """Return a text without what a terminal obeys, lines apart, or cannot write."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def _in_words(text: str, wording: Mapping[str, str]) -> str:
    if not wording:
        return text
    small = {key.lower(): words for key, words in wording.items()}
    known = "|".join(re.escape(key) for key in sorted(small, key=len, reverse=True))
    pattern = rf"(in params\.yaml under )?(?<![\w.`-])({known})(?![\w`]|\.\w)( in params\.yaml)?"

    def replace(match: re.Match[str]) -> str:
        words = small[match[2].lower()]
        return ("under " if match[1] else "") + (words if match[2][0].islower() else words[0].upper() + words[1:])

    return re.sub(pattern, replace, text, flags=re.IGNORECASE)
