"""An accelerator that is none: tensors that torch takes for another device's, computed on the CPU.

Registered with torch as a device of the name `pretend`. What a real accelerator refuses is refused here: mixing tensors
of two devices, `.numpy()`. What costs time there is counted: values that the host waits for, and copies to the host.
Copies that need not be waited for are made as late as a real one may make them: when somebody waits.
"""

# It replaces parts of torch, whose types know of no such device.
# mypy: disable-error-code="override, assignment, arg-type"

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

DEVICE = "pretend"
COUNTS: Counter[str] = Counter()
"""`waits`: values that the host asked for; `calls`: operations on the device; `uploads`, `copies`: tensors copied to
the device and to the host, in line with its work; `overlapped`: copies, either way, on a stream of their own; `lent`:
tensors whose memory another stream is said to use; `awaited`: events that a stream waits for."""

MEMORY = 1 << 34
"""Bytes that the device says are free."""

_CURRENT = threading.local()


class Stream(torch.Stream):
    """Work in line; done when it is waited for, and not before."""

    def __new__(cls, _: object = None) -> Stream:
        return super().__new__(cls, device=DEVICE)

    def __init__(self, _: object = None) -> None:
        self.line: list[Callable[[], object]] = []

    def __enter__(self) -> Stream:
        _CURRENT.streams = [*getattr(_CURRENT, "streams", ()), self]
        return self

    def __exit__(self, *_: object) -> None:
        _CURRENT.streams = _CURRENT.streams[:-1]

    def record_event(self) -> Event:
        return Event(self, len(self.line))

    def wait_event(self, event: Event) -> None:
        COUNTS["awaited"] += 1
        self.line.append(event.synchronize)

    def synchronize(self) -> None:
        Event(self, len(self.line)).synchronize()


class Event:
    """A place in the line of a stream."""

    def __init__(self, stream: Stream, place: int) -> None:
        self._stream, self._place = stream, place

    def synchronize(self) -> None:
        for place in range(self._place):
            work, self._stream.line[place] = self._stream.line[place], _done
            work()


def _done() -> None:
    pass


def current_stream(_: object = None) -> Stream:
    return [_DEFAULT, *getattr(_CURRENT, "streams", ())][-1]


_MAY_MIX = ("copy_", "index", "index_put_", "_index_put_impl_")


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def mem_get_info(self, device: object = None) -> tuple[int, int]:
        return MEMORY, MEMORY


class Pretend(torch.Tensor):
    """A tensor on the device; `raw` is the one on the CPU."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> Pretend:
        found = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=f"{DEVICE}:0",
            requires_grad=False,
        )
        found.raw = raw
        return found

    __torch_function__ = torch._C._disabled_torch_function_impl

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.raw.untyped_storage()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def __repr__(self) -> str:
        return f"Pretend({self.raw!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.removeprefix("aten::")
    COUNTS["calls"] += 1
    known: dict[int, Pretend] = {}
    host: list[torch.Tensor] = []

    def unwrap(value: Any) -> Any:
        if isinstance(value, Pretend):
            known[id(value.raw)] = value
            return value.raw
        if isinstance(value, torch.Tensor) and value.ndim:
            host.append(value)
        return value

    kwargs = dict(kwargs)
    device = kwargs.get("device")
    if device is not None and torch.device(device).type == DEVICE:
        kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    args, kwargs = tree_map(unwrap, args), tree_map(unwrap, kwargs)
    if known and host and name not in _MAY_MIX:
        raise RuntimeError(f"{name}: tensors on two devices")
    if name == "record_stream":
        COUNTS["lent"] += 1
        return None
    if name == "_local_scalar_dense":
        COUNTS["waits"] += 1
    later = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
    if name == "copy_" and later and current_stream() is not _DEFAULT:
        COUNTS["overlapped"] += 1
        current_stream().line.append(partial(func, *args, **kwargs))
        return known.get(id(args[0]), args[0])
    to_host = device is not None and torch.device(device).type == "cpu"
    if to_host or (name == "copy_" and host and id(args[0]) not in known):
        COUNTS["copies"] += 1
    if name == "_to_copy" and host and not to_host:
        COUNTS["uploads"] += 1
    result = func(*args, **kwargs)
    if to_host or (name == "copy_" and id(args[0]) not in known):
        return result

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else Pretend(value)

    return tree_map(wrap, result)


def _without_a_tensor(func: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(func, args, kwargs)


_setup_privateuseone_for_python_backend(DEVICE, backend_module=_Module())
_library = torch.library.Library("_", "IMPL")
_library.fallback(_without_a_tensor, "PrivateUse1")
_DEFAULT = Stream()
"""The stream of all other work, which is done at once."""
torch.accelerator.synchronize = lambda device=None, /: None
torch.accelerator.max_memory_allocated = lambda device=None, /: 0
_tensor = torch.tensor
_device_constructors()  # kept from now on: with the function below in it, `with torch.device("meta")` would miss ours


def _tensor_on(data: Any, *, device: Any = None, **rest: Any) -> torch.Tensor:
    made = _tensor(data, **rest)
    return made if device is None else made.to(device)  # without one: where a `with torch.device` says


torch.tensor = _tensor_on
torch.Stream, torch.Event = Stream, Event
torch.accelerator.current_stream = current_stream
_empty = torch.empty


def _empty_pageable(*size: Any, pin_memory: bool = False, **rest: Any) -> torch.Tensor:
    return _empty(*size, **rest)


torch.empty = _empty_pageable
