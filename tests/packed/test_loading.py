"""Packed checkpoints in transformers, and without zpruner."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import families
import pytest
import tiny
import torch
from packed_cases import IDS, family, packed, save, zero_half
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, pipeline

import zpruner
from zpruner.packed.linear import PackedLinear
from zpruner.packed.stack import stacks_of
from zpruner.packed.unpack import unpack

FEW = ("llama", "gpt2", "opt", "mixtral", "gpt_oss", "phi3")
MORE = [pytest.param(name, marks=pytest.mark.slow) for name in families.ALL if name not in FEW]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bfloat16 Llama as it was pruned, and packed."""
    folder = tmp_path_factory.mktemp("llama")
    dense = save(zero_half(tiny.build("llama").bfloat16()), folder / "dense")
    packed(dense, folder / "packed")
    return dense, folder / "packed"


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, use_cache=False).logits
    return found.float()


def same(packed_one: PreTrainedModel, plain: PreTrainedModel) -> bool:
    """Whether logits of 48 rows, which meet expanded weights, are equal: of experts, which see a few each, nearly."""
    many = logits(packed_one, IDS), logits(plain, IDS)
    return torch.equal(*many) or (bool(stacks_of(packed_one)) and torch.allclose(*many, rtol=1e-4, atol=1e-5))


def sparse_layers(model: PreTrainedModel) -> list[PackedLinear]:
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


@pytest.mark.parametrize("name", [*FEW, *MORE])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_familys_logits_are_those_of_the_pruned_checkpoint(name: str, tmp_path: Path) -> None:
    dense = save(zero_half(family(name)), tmp_path / "dense")
    packed(dense, tmp_path / "packed")
    before, _ = zpruner.load(dense, device="cpu")
    after, _ = zpruner.load(tmp_path / "packed", device="cpu")
    assert after.dtype == torch.float32
    assert same(after, before)
    few = logits(before, IDS[:1, :5])
    assert (logits(after, IDS[:1, :5]) - few).abs().max() <= 2e-5 * few.abs().max()  # the order of float32 sums
    found = {key: value + 0 for key, value in after.state_dict().items()}
    assert all(torch.equal(found[key], value) for key, value in before.state_dict().items() if key in found)


def test_linear_layers_stay_packed_in_memory(folders: tuple[Path, Path]) -> None:
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    assert after.dtype == torch.bfloat16
    assert len(sparse_layers(after)) == 21
    assert not any(isinstance(module, nn.Linear) for module in after.model.layers.modules())
    for name, module in after.named_modules():
        if isinstance(module, PackedLinear):
            assert torch.equal(module.weight, before.get_submodule(name).weight)
            assert module.weight_values.dtype == torch.bfloat16


def test_bfloat16_products_of_a_few_rows_are_within_rounding(folders: tuple[Path, Path]) -> None:
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    for layer, module in ((n, m) for n, m in after.named_modules() if isinstance(m, PackedLinear)):
        for rows in (1, 3, 16, 17, 40):
            x = torch.randn(rows, module.in_features).bfloat16()
            exact = x.double() @ before.get_submodule(layer).weight.double().T
            with torch.no_grad():
                found = module(x.view(1, rows, -1)).double().view(rows, -1)
            assert ((found - exact).abs() <= 2.0**-8 * exact.abs() + 1e-3 * 2.0**-8).all()


def test_batches_are_generated_as_by_the_pruned_checkpoint(tmp_path: Path) -> None:
    dense = save(zero_half(tiny.build("llama")), tmp_path / "dense")
    packed(dense, tmp_path / "packed")
    made = []
    for folder in (dense, tmp_path / "packed"):
        model, tokenizer = zpruner.load(folder, device="cpu")
        tokenizer.padding_side, tokenizer.pad_token = "left", "</s>"
        batch = tokenizer([tiny.words(7), tiny.words(3, seed=1)], return_tensors="pt", padding=True)
        batch.pop("token_type_ids", None)
        made.append(model.generate(**batch, max_new_tokens=8, do_sample=False, pad_token_id=2))
    assert torch.equal(*made)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_pipeline_generates(folders: tuple[Path, Path]) -> None:
    generate = pipeline("text-generation", model=str(folders[1]), device="cpu")
    found = generate("abc def", max_new_tokens=4, do_sample=False, return_full_text=False)
    assert isinstance(found[0]["generated_text"], str)
    assert sparse_layers(generate.model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_saved_model_is_a_packed_checkpoint(name: str, tmp_path: Path) -> None:
    dense = save(zero_half(family(name)), tmp_path / "dense")
    packed(dense, tmp_path / "packed")
    model, _ = zpruner.load(tmp_path / "packed", device="cpu")
    model.save_pretrained(tmp_path / "again", max_shard_size=40_000)
    assert not list((tmp_path / "again").glob("model*"))
    again, _ = zpruner.load(tmp_path / "again", device="cpu")
    assert torch.equal(logits(again, IDS), logits(model, IDS))
    assert len(sparse_layers(again)) == len(sparse_layers(model))
    (tmp_path / "back").mkdir()
    unpack(tmp_path / "again", tmp_path / "back")
    plain, _ = zpruner.load(tmp_path / "back", device="cpu")
    assert not sparse_layers(plain)
    assert same(model, plain)
    model.save_pretrained(tmp_path / "again")  # one file now: the shards go
    assert [path.name for path in (tmp_path / "again").glob("*.safetensors")] == ["zpruner.safetensors"]
    assert torch.equal(logits(zpruner.load(tmp_path / "again", device="cpu")[0], IDS), logits(model, IDS))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_dtype_is_that_of_the_inputs_and_results(folders: tuple[Path, Path], dtype: str) -> None:
    before, after = (zpruner.load(folder, dtype=dtype, device="cpu")[0] for folder in folders)
    assert logits(after, IDS[:1, :4]).allclose(logits(before, IDS[:1, :4]), rtol=1e-2, atol=1e-2)
    assert sparse_layers(after)[0].weight_values.dtype == torch.bfloat16


def test_a_layer_follows_what_is_done_to_it(folders: tuple[Path, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders[1])
    expected = logits(model, IDS[:1, :3])
    assert torch.equal(logits(copy.deepcopy(model), IDS[:1, :3]), expected)
    layer = sparse_layers(model)[0]
    layer.weight_values = torch.zeros_like(layer.weight_values)
    assert not logits(model, IDS[:1, :3]).equal(expected)
    assert layer.weight_offsets is not None
    layer.weight_offsets = torch.add(layer.weight_offsets, 1)
    with pytest.raises(zpruner.ZprunerError, match="a first offset of 1"):
        logits(model, IDS[:1, :3])
    other = sparse_layers(model)[1]
    x = torch.randn(2, other.in_features)
    before = other(x)
    assert other.float().matrix.dtype == torch.float32
    assert torch.allclose(other(x), before, rtol=1e-5, atol=1e-6)
    other.load_state_dict({**other.state_dict(), "weight_values": torch.zeros_like(other.weight_values)})
    assert not other(x).any()


def test_gradients_reach_the_inputs(folders: tuple[Path, Path]) -> None:
    before, after = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders)
    found = []
    for model in (before, after):
        embedded = model.get_input_embeddings()(IDS[:1, :4]).detach().requires_grad_()
        model(inputs_embeds=embedded, use_cache=False).logits.float().square().mean().backward()
        found.append(embedded.grad)
    assert torch.allclose(*found, rtol=1e-4, atol=1e-6)


def test_ordinary_layers_come_back(folders: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    after.dequantize()
    assert not sparse_layers(after)
    assert torch.equal(logits(after, IDS), logits(before, IDS))


def test_an_altered_file_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[1], tmp_path / "packed")
    path = tmp_path / "packed" / "zpruner.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(zpruner.ZprunerError, match="checksum"):
        zpruner.load(tmp_path / "packed", device="cpu")
    (tmp_path / "packed" / "zpruner.json").unlink()  # as after a download of the weights alone: the bits tell
    with pytest.raises(zpruner.ZprunerError, match=r"offsets|beyond|behind"):
        zpruner.load(tmp_path / "packed", device="cpu")


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )


LOAD = """
import sys
from transformers import AutoModelForCausalLM
print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])), "pyarrow" in sys.modules)
"""


def test_without_zpruner_nothing_is_loaded_and_the_error_says_what_to_do(folders: tuple[Path, Path]) -> None:
    done = run(LOAD, folders[1])
    assert done.returncode != 0
    assert done.stdout == ""
    assert "`import zpruner` before it is loaded" in done.stderr.splitlines()[-1]


ORDERS = (
    ("zpruner", "transformers"),
    ("transformers", "zpruner"),
    ("transformers.quantizers.auto", "zpruner"),
    ("zpruner.packed.quantizer", "transformers"),
)


@pytest.mark.parametrize("order", [ORDERS[0], *(pytest.param(order, marks=pytest.mark.slow) for order in ORDERS[1:])])
def test_importing_zpruner_is_enough(order: tuple[str, str], folders: tuple[Path, Path]) -> None:
    done = run("".join(f"import {name}\n" for name in order) + LOAD, folders[1])
    assert done.stdout.endswith("LlamaForCausalLM'> False\n"), done.stderr


def test_import_zpruner_stays_light() -> None:
    heavy = ("torch", "transformers", "numpy", "safetensors", "pyarrow", "pydantic")
    done = run(f"import sys, zpruner, zpruner.cli; print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lm_evaluation_harness_loads_it_by_its_name(folders: tuple[Path, Path]) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    asked = [Instance("loglikelihood", {}, (tiny.words(4), " " + tiny.words(3, seed=n)), n) for n in range(3)]
    found = []
    for folder in folders:
        harness = HFLM(pretrained=str(folder), device="cpu", batch_size=2)
        found.append(harness.loglikelihood(asked, disable_tqdm=True))
    assert sparse_layers(harness.model)
    assert [score for score, _ in found[1]] == pytest.approx([score for score, _ in found[0]], rel=1e-2)
