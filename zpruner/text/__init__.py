"""Texts as token windows: cut, joined, written and read."""

from zpruner.text.tokens import read_windows, write_windows
from zpruner.text.windows import calibration_windows, check_length, evaluation_windows, windows_hash

__all__ = [
    "calibration_windows",
    "check_length",
    "evaluation_windows",
    "read_windows",
    "windows_hash",
    "write_windows",
]
