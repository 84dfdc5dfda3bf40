"""An accelerator that is none: tensors that torch takes for another device's, computed on the CPU.

Registered with torch as a device of the name `pretend`. What a real accelerator refuses is refused here: mixing tensors
of two devices, `.numpy()`. What costs time there is counted: values that the host waits for, and copies to the host.
"""

from __future__ import annotations

from collections import Counter
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
"""`waits`: values that the host asked for; `copies`: tensors copied to the host; `calls`: operations on the device."""

MEMORY = 1 << 34
"""Bytes that the device says are free."""

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
    if name == "_local_scalar_dense":
        COUNTS["waits"] += 1
    to_host = device is not None and torch.device(device).type == "cpu"
    if to_host or (name == "copy_" and host and id(args[0]) not in known):
        COUNTS["copies"] += 1
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
torch.accelerator.synchronize = lambda device=None, /: None
torch.accelerator.max_memory_allocated = lambda device=None, /: 0
_tensor = torch.tensor
_device_constructors()  # kept from now on: with the function below in it, `with torch.device("meta")` would miss ours


def _tensor_on(data: Any, *, device: Any = None, **rest: Any) -> torch.Tensor:
    made = _tensor(data, **rest)
    return made if device is None else made.to(device)  # without one: where a `with torch.device` says


torch.tensor = _tensor_on
