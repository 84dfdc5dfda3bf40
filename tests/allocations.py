"""What torch's allocator hands out, counted: what a process holds also depends on what ran before in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object], folder: Path) -> int:
    """Return the most bytes that tensors made during `run` took at once."""
    trace = folder / "trace.json"
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    profiled.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        live += event["args"]["Bytes"]
        most = max(most, live)
    return most
