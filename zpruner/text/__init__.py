"""Texts as token windows: cut, joined, written and read."""

from zpruner.text.tokenizer import Bos, encoding_of
from zpruner.text.tokens import WindowsOrigin, read_begin, read_windows, write_windows
from zpruner.text.windows import calibration_windows, check_length, counted_tokens, evaluation_windows, windows_hash

__all__ = [
    "Bos",
    "WindowsOrigin",
    "calibration_windows",
    "check_length",
    "counted_tokens",
    "encoding_of",
    "evaluation_windows",
    "read_begin",
    "read_windows",
    "windows_hash",
    "write_windows",
]
