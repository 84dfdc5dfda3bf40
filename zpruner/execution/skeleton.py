"""A model without its weights: the structure on the meta device, into which weights are put by name and taken out.

Renaming, fusing and casting of stored tensors is that of transformers' own loader, called for a few tensors at a time,
so that a weight is the same whether the model was loaded whole or in parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zpruner.checkpoint.conversion import Conversion, empty_model
from zpruner.errors import ModelStructureError
from zpruner.execution.read_ahead import ReadAhead, Tensors
from zpruner.model.bfloat16 import multiplies_bfloat16, widen_products
from zpruner.model.load import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Skeleton:
    """A causal language model whose parameters and stored buffers lie on the meta device until they are put in.

    Buffers that no checkpoint stores (such as rotary tables) are computed and stay.

    Args:
        folder: a Hugging Face checkpoint; only its config.json is read here.
        tensors: the checkpoint's.
        dtype: of the parameters, as `load_model` would choose it.
        device: where weights are put.
        trust_remote_code: whether code in the checkpoint may run.

    Raises:
        SourceError, ModelStructureError: as `load_model`.
    """

    def __init__(
        self, folder: Path, tensors: Tensors, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False
    ) -> None:
        self.folder, self.tensors, self.dtype, self.device = folder, tensors, dtype, device
        self.model = empty_model(folder, dtype, trust_remote_code=trust_remote_code)
        if self.model.dtype == torch.bfloat16 and not multiplies_bfloat16(device):
            widen_products(self.model)
        self._mapping = _Mapping(self.model, dtype, device)
        self._ahead = ReadAhead(tensors, device)
        self._mapping.keep_wide()
        stored = self.model.state_dict(keep_vars=True)
        self._empty = dict(stored)
        names_of: dict[int, list[str]] = {}
        for name, tensor in stored.items():
            names_of.setdefault(id(tensor), []).append(name)
        self.tied = {name: tuple(names_of[id(tensor)]) for name, tensor in stored.items()}
        """Every stored name -> all names of the same tensor, itself included."""
        self._compute_buffers(stored)
        self._stored_as = self._match(stored)

    def put(self, names: Iterable[str]) -> None:
        """Read the tensors `names` and those tied to them, and put them into the model.

        Raises:
            ModelStructureError: a tensor of another shape, or one that cannot be converted.
        """
        wanted = {tied for name in names for tied in self.tied[name]}
        sources = self._sources(wanted)
        self._ahead.keep(sources)
        self._mapping.load({name: _Later(self._ahead, name) for name in sources}, self.folder)
        for name in wanted:
            tensor = _find(self.model, name)
            if tensor.is_meta:
                tensor = next(t for t in (_find(self.model, other) for other in self.tied[name]) if not t.is_meta)
            _assign(self.model, name, tensor)

    def announce(self, names: Iterable[str]) -> None:
        """Begin to read what `put` needs for the tensors `names`, which are put in next; none: drop what was begun."""
        self._ahead.announce(self._sources({tied for name in names for tied in self.tied[name]}))

    def to_store(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the tensors `names`, as they are in the model now, in the form and by the names of a checkpoint.

        Of tied tensors there is one. Tensors on the meta device give meta tensors.
        """
        chosen = {self._kept_of_tied(name): None for name in names}
        return self._mapping.conversion.to_stored({name: _find(self.model, name).detach() for name in chosen})

    def take_out(self, names: Iterable[str]) -> None:
        """Put the tensors `names`, and those tied to them, back on the meta device, which frees their memory."""
        for name in {tied for wanted in names for tied in self.tied[wanted]}:
            _assign(self.model, name, self._empty[name])

    def sizes(self, names: Iterable[str]) -> int:
        """Return the bytes of the tensors `names`, tied ones counted once."""
        chosen = {self.tied[name][0]: self._empty[name] for name in names}
        return sum(tensor.numel() * tensor.element_size() for tensor in chosen.values())

    @property
    def stored(self) -> tuple[str, ...]:
        """Names of all parameters and stored buffers."""
        return tuple(self._empty)

    def materialised(self) -> set[str]:
        """Return the stored names that have memory now."""
        return {name for name, tensor in self.model.state_dict(keep_vars=True).items() if not tensor.is_meta}

    def _kept_of_tied(self, name: str) -> str:
        dropped = self.model.all_tied_weights_keys
        return next((other for other in self.tied[name] if other not in dropped), self.tied[name][0])

    def _sources(self, names: Iterable[str]) -> list[str]:
        """Return the stored tensors that the tensors `names` are made of, each once."""
        return list({source: None for name in names for source in self._stored_as.get(name, ())})

    def _compute_buffers(self, stored: dict[str, Tensor]) -> None:
        """Compute what no checkpoint stores as transformers does after loading: by the model's own code, on the CPU."""
        for tensor in stored.values():
            tensor._is_hf_initialized = True  # type: ignore[attr-defined]
        for module in self.model.modules():
            vars(module).pop("_is_hf_initialized", None)
        buffers = [name for name, _ in self.model.named_buffers(remove_duplicate=False) if name not in stored]
        for name in buffers:
            _assign(self.model, name, torch.empty_like(_find(self.model, name), device="cpu"))
        self.model.initialize_weights()
        for name in buffers:
            _assign(self.model, name, _find(self.model, name).to(self.device))

    def _match(self, stored: dict[str, Tensor]) -> dict[str, list[str]]:
        """Return for every name the checkpoint's tensors that it is made of."""
        found: dict[str, list[str]] = {}
        for source in self.tensors.names():
            for target in self._mapping.conversion.targets(source):
                found.setdefault(target, []).append(source)
        missing = sorted(name for name in stored if not any(tied in found for tied in self.tied[name]))
        if missing:
            raise ModelStructureError(
                str(self.folder),
                f"no tensor '{missing[0]}'",
                "every weight of the model that config.json describes",
                "Check that the folder is whole.",
            )
        return found


class _Later:
    """A tensor that is read when transformers' loader slices it."""

    def __init__(self, tensors: ReadAhead, name: str) -> None:
        self._tensors, self._name = tensors, name

    def __getitem__(self, _: object) -> Tensor:
        return self._tensors.take(self._name)


class _Mapping:
    """Puts stored tensors into a model through transformers' loader."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> None:
        self.model, self.dtype, self.device = model, dtype, device
        self._wide = model._get_dtype_plan(dtype)
        self.conversion = Conversion(model)

    def keep_wide(self) -> None:
        """Give the tensors that the family keeps in a wider type that type, still on the meta device."""
        from transformers.core_model_loading import build_glob_alternation

        if not self._wide:
            return
        pattern, plans, _ = build_glob_alternation(list(self._wide))
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            match = pattern.search(name)
            if match is not None and match.lastgroup is not None and tensor.is_floating_point():
                wide = torch.empty_like(tensor, dtype=self._wide[plans[match.lastgroup]])
                _assign(self.model, name, nn.Parameter(wide) if isinstance(tensor, nn.Parameter) else wide)

    def load(self, tensors: dict[str, _Later], folder: Path) -> None:
        """Put stored tensors into the model, renamed, fused and cast."""
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        plan = LoadStateDictConfig(
            dtype=self.dtype,
            dtype_plan=self._wide,
            device_map={"": self.device},
            weight_mapping=self.conversion.transforms,
        )
        with quiet_transformers():
            found, _ = convert_and_load_state_dict_in_model(self.model, tensors, plan)
        if found.mismatched_keys:
            name, got, want = min(found.mismatched_keys)
            problem, expected = f"'{name}' of shape {tuple(got)} for {tuple(want)}", "the shapes that config.json gives"
        elif found.conversion_errors:
            name, text = min(found.conversion_errors.items())
            problem, expected = f"'{name}', which cannot be converted ({text.splitlines()[0]})", "a whole checkpoint"
        else:
            return
        raise ModelStructureError(str(folder), problem, expected, "Check that the folder is whole.")


def _find(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    found = module._parameters.get(leaf, module._buffers.get(leaf))
    assert found is not None
    return found


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._parameters:
        module._parameters[leaf] = tensor  # type: ignore[assignment]
    else:
        module._buffers[leaf] = tensor
