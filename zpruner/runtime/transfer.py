"""Copies between the host and an accelerator that overlap with what it computes.

An ordinary copy waits in line with the device's work, and the work behind it waits for the copy. These go through
page-locked buffers on their own stream. For threads that read ahead or write behind: each call waits until its
copy is done, so that whoever takes the tensor over has nothing to wait for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_BUFFER = 1 << 24
"""Bytes of each of a lane's two buffers: one is on its way while the other is filled or emptied."""
_WITHOUT_STREAMS = ("cpu", "mps", "meta")
"""Devices with the host's memory, or none."""


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return the tensor on `device`, complete, for use on the stream that is current in the calling thread."""
    device = torch.device(device)
    if device.type in _WITHOUT_STREAMS or tensor.device.type != "cpu":
        return tensor.to(device)
    with _borrowed(device) as lane, lane.stream:
        found = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        lane.send(tensor.contiguous(), found)
    # Its memory belongs to the lane's stream, and must not be given to the next tensor while this one is still read.
    found.record_stream(torch.accelerator.current_stream(device))
    return found


def to_host(tensor: Tensor) -> Callable[[], Tensor]:
    """Return a call that gives the tensor on the CPU, as the work that was begun up to now leaves it.

    The call may be made in another thread; the tensor must not be changed before it returns.
    """
    tensor = tensor.detach()
    if tensor.device.type in _WITHOUT_STREAMS:
        return tensor.cpu
    ready = torch.accelerator.current_stream(tensor.device).record_event()

    def fetch() -> Tensor:
        found = torch.empty(tensor.shape, dtype=tensor.dtype)
        with _borrowed(tensor.device) as lane, lane.stream:
            lane.stream.wait_event(ready)
            lane.receive(tensor.contiguous(), found)
        return found

    return fetch


class _Lane:
    """A stream and two page-locked buffers. Both tensors of a copy are contiguous and of one shape and dtype."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.Stream(device)
        self._buffers = [torch.empty(_BUFFER, dtype=torch.uint8, pin_memory=True) for _ in range(2)]

    def send(self, source: Tensor, target: Tensor) -> None:
        """Copy from the host to the device; the lane's stream must be the current one."""
        on_their_way: list[torch.Event] = []
        for turn, (here, there) in enumerate(zip(_pieces(source), _pieces(target), strict=True)):
            if turn > 1:
                on_their_way[turn - 2].synchronize()
            buffer = self._buffers[turn % 2][: len(here)]
            buffer.copy_(here)
            there.copy_(buffer, non_blocking=True)
            on_their_way.append(self.stream.record_event())
        self.stream.synchronize()

    def receive(self, source: Tensor, target: Tensor) -> None:
        """Copy from the device to the host; the lane's stream must be the current one."""
        on_their_way: list[tuple[torch.Event, Tensor, Tensor]] = []
        for turn, (there, here) in enumerate(zip(_pieces(source), _pieces(target), strict=True)):
            if turn > 1:
                _arrive(*on_their_way[turn - 2])
            buffer = self._buffers[turn % 2][: len(here)]
            buffer.copy_(there, non_blocking=True)
            on_their_way.append((self.stream.record_event(), buffer, here))
        for last in on_their_way[-2:]:
            _arrive(*last)


def _arrive(event: torch.Event, buffer: Tensor, target: Tensor) -> None:
    event.synchronize()
    target.copy_(buffer)


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the tensor's bytes in pieces of a buffer's size."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).split(_BUFFER)


_FREE: dict[torch.device, list[_Lane]] = {}
_FREE_LOCK = threading.Lock()


@contextmanager
def _borrowed(device: torch.device) -> Iterator[_Lane]:
    """Give a lane that no other thread uses: as many are made as copies run at a time.

    Not one per thread: threads come and go, and memory that was freed serves only the stream it was taken on.
    """
    device = torch.empty(0, device=device).device  # with its index
    with _FREE_LOCK:
        free = _FREE.setdefault(device, [])
        lane = free.pop() if free else None
    lane = lane or _Lane(device)
    yield lane
    # After an error its last copy may still be under way: it is let go.
    with _FREE_LOCK:
        free.append(lane)
