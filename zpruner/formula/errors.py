"""The error of a formula that cannot be read."""

from __future__ import annotations

from zpruner.errors import InvalidSettingError

_WINDOW = 72


class FormulaError(InvalidSettingError):
    """A pruning formula with an unknown name, a wrong number of arguments, or text left over.

    Args:
        where: the formula, and the column or the place in the JSON tree.
        got: what stands there.
        expected: what could stand there.
        action: what the user can do; for text, followed by the formula and a caret below the character.
        column: 1-based column of the character at fault, None for a JSON tree.
    """

    def __init__(self, where: str, got: str, expected: str, action: str, column: int | None = None) -> None:
        super().__init__(where, got, expected, action)
        self.column = column


def error_at(text: str, index: int, got: str, expected: str, action: str) -> FormulaError:
    """Return a FormulaError that shows `text` with a caret below the character at 0-based `index`."""
    line = "".join(" " if c.isspace() else c for c in text)
    start = max(0, min(index - _WINDOW // 2, len(line) - _WINDOW))
    head = "..." if start else ""
    tail = "..." if start + _WINDOW < len(line) else ""
    shown = f"{head}{line[start : start + _WINDOW]}{tail}"
    caret = " " * (len(head) + index - start) + "^"
    return FormulaError(
        f"formula, column {index + 1}", got, expected, f"{action}\n    {shown}\n    {caret}", column=index + 1
    )
