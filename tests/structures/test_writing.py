"""The smaller checkpoint: what is written block by block is the smaller model, wherever it is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import families
import pytest
import tiny
import torch
from structure_cases import TOKENS, logits, some
from transformers import AutoModelForCausalLM, PreTrainedModel

from zpruner.artifacts.work import Work
from zpruner.checkpoint import Checkpoint, find_converted, write_manifest
from zpruner.errors import ModelStructureError
from zpruner.model import take_inventory
from zpruner.patterns import StructureKind
from zpruner.structures import Couplings, cut, find_couplings, write_cut


def stored(model: PreTrainedModel, folder: Path) -> Checkpoint:
    model.save_pretrained(folder)
    write_manifest(folder, "dense", role="dense", dtype="float32", converted=find_converted(folder))
    return Checkpoint(folder)


def written(model: PreTrainedModel, kind: StructureKind, folder: Path) -> tuple[Path, PreTrainedModel]:
    """Return the folder of the smaller checkpoint, and the model cut in memory."""
    dense, couplings = stored(model, folder / "dense"), find_couplings(model)
    keep = some(couplings.of(kind))
    with Work(folder / "work", "apply", "key") as work:
        write_cut(
            dense,
            take_inventory(model),
            couplings,
            keep,
            lambda _, weight: weight,
            work,
            {"role": "pruned", "dtype": "float32"},
            lambda: None,
            "# card",
        )
        work.publish(folder / "small")
    Checkpoint(folder / "small").verify_all()
    return folder / "small", cut(model, couplings, keep)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("mixtral", StructureKind.EXPERTS),
        pytest.param("mixtral", StructureKind.NEURONS, marks=pytest.mark.slow),
        pytest.param("qwen2_moe", StructureKind.NEURONS, marks=pytest.mark.slow),
        pytest.param("gpt_oss", StructureKind.EXPERTS, marks=pytest.mark.slow),
        pytest.param("deepseek_v3", StructureKind.EXPERTS, marks=pytest.mark.slow),
        pytest.param("gemma3_text", StructureKind.BLOCKS, marks=pytest.mark.slow),
        pytest.param("gpt2", StructureKind.NEURONS, marks=pytest.mark.slow),
        pytest.param("phi3", StructureKind.GROUPS, marks=pytest.mark.slow),
        pytest.param("jamba", StructureKind.EXPERTS, marks=pytest.mark.slow),
    ],
)
def test_the_checkpoint_is_the_model_cut_in_memory(family: str, kind: StructureKind, tmp_path: Path) -> None:
    folder, smaller = written(families.build(family), kind, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(folder)
    for name, tensor in smaller.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert torch.equal(logits(again), logits(smaller))


@pytest.mark.parametrize("kind", [StructureKind.GROUPS, pytest.param(StructureKind.BLOCKS, marks=pytest.mark.slow)])
def test_a_process_without_this_library_loads_it(kind: StructureKind, tmp_path: Path) -> None:
    folder, smaller = written(tiny.llama().eval(), kind, tmp_path)
    code = (
        "import json, sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "with torch.no_grad():\n"
        "    found = model(input_ids=torch.tensor(json.loads(sys.argv[2])), use_cache=False).logits\n"
        "assert not any(name.split('.')[0] == 'zpruner' for name in sys.modules)\n"
        "print(json.dumps([model.num_parameters(), found.double().sum().item()]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(folder), json.dumps(TOKENS.tolist())],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    parameters, total = json.loads(run.stdout)
    assert parameters == smaller.num_parameters()
    assert total == pytest.approx(logits(smaller).double().sum().item(), rel=1e-6)


def test_what_the_config_cannot_say_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = tiny.llama()
    couplings = find_couplings(model)
    first = tuple(coupling for coupling in couplings.of(StructureKind.NEURONS) if coupling.block == 0)
    overlooked = Couplings(first, couplings.sizes)  # the other blocks
    dense = stored(model, tmp_path / "dense")
    with Work(tmp_path / "work", "apply", "key") as work:
        with pytest.raises(ModelStructureError, match="in place of"):
            write_cut(
                dense,
                take_inventory(model),
                overlooked,
                some(first),
                lambda _, weight: weight,
                work,
                {},
                lambda: None,
                "",
            )
        assert not list(work.files.iterdir())
