"""What the library uses of transformers and transformers does not promise: another version that lacks it fails here."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import core_model_loading, modeling_utils
from transformers.conversion_mapping import get_model_conversion_mapping

import zpruner

HERE = Path(str(zpruner.__file__)).parent
IMPORTED = sorted(
    {
        (node.module, alias.name)
        for path in HERE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("transformers")
        for alias in node.names
    }
)
SIGNATURES: list[tuple[Callable[..., Any], int, tuple[str, ...]]] = [
    (core_model_loading.convert_and_load_state_dict_in_model, 3, ()),
    (core_model_loading.build_glob_alternation, 1, ()),
    (core_model_loading.rename_source_key, 5, ()),
    (core_model_loading.revert_weight_conversion, 2, ()),
    (core_model_loading.WeightConverter.add_tensor, 5, ()),
    (core_model_loading.WeightConverter.convert, 2, ("model", "config")),
    (core_model_loading.WeightConverter.was_used, 1, ()),
    (get_model_conversion_mapping, 3, ()),
    (modeling_utils.PreTrainedModel._get_dtype_plan, 2, ()),
    (modeling_utils.remove_tied_weights_from_state_dict, 2, ()),
    (
        modeling_utils.LoadStateDictConfig,
        0,
        ("dtype", "dtype_plan", "device_map", "hf_quantizer", "weight_mapping"),
    ),
]


@pytest.mark.parametrize(("module", "name"), IMPORTED)
@pytest.mark.filterwarnings("ignore")
def test_every_name_that_is_imported_is_there(module: str, name: str) -> None:
    assert getattr(import_module(module), name) is not None


@pytest.mark.parametrize(("function", "positions", "keywords"), SIGNATURES)
def test_private_functions_take_what_they_are_given(
    function: Callable[..., Any], positions: int, keywords: tuple[str, ...]
) -> None:
    inspect.signature(function).bind(*range(positions), **dict.fromkeys(keywords))


def test_private_attributes_are_there() -> None:
    model = tiny.build("llama")
    assert model._get_dtype_plan(torch.bfloat16) == {}
    assert "_weight_conversions" in inspect.getsource(core_model_loading.revert_weight_conversion)
    assert model.config._attn_implementation == "sdpa"
    assert model.base_model_prefix == "model"
    assert model.all_tied_weights_keys == {"lm_head.weight": "model.embed_tokens.weight"}
