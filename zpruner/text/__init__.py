"""Texts as token windows: cut, joined, written and read."""

from zpruner.text.mixture import in_turns, mixed_windows
from zpruner.text.tokenizer import Bos, encoding_of
from zpruner.text.tokens import WindowsOrigin, read_begin, read_sources, read_windows, write_windows
from zpruner.text.windows import calibration_windows, check_length, counted_tokens, evaluation_windows, windows_hash
from zpruner.text.writing import TOGETHER, Writing, cache_bytes, check_room, kept_windows, writing_of, written

__all__ = [
    "TOGETHER",
    "Bos",
    "WindowsOrigin",
    "Writing",
    "cache_bytes",
    "calibration_windows",
    "check_length",
    "check_room",
    "counted_tokens",
    "encoding_of",
    "evaluation_windows",
    "in_turns",
    "kept_windows",
    "mixed_windows",
    "read_begin",
    "read_sources",
    "read_windows",
    "windows_hash",
    "write_windows",
    "writing_of",
    "written",
]
