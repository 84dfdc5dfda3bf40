"""Counts the products that torch carries out."""

from torch.overrides import TorchFunctionMode


class Counting(TorchFunctionMode):
    """Counts products that are carried out, when it is entered first."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in ("linear", "addmm")
        return func(*args, **(kwargs or {}))
