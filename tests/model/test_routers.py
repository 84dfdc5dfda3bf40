"""Routers stay dense, and nothing else is taken for one."""

from __future__ import annotations

import families
import pytest
import torch

from zpruner.model import take_inventory
from zpruner.model.experts import find_routers

EXPERTS = {"blocks.0.mlp.experts": 8}


def routers(hidden: int | None = 32, **weights: int) -> set[str]:
    named = {f"blocks.0.{name.replace('__', '.')}.weight": out for name, out in weights.items()}
    return {name.removeprefix("blocks.0.").removesuffix(".weight") for name in _find(named, hidden)}


def _find(named: dict[str, int], hidden: int | None) -> dict[str, str]:
    return find_routers("blocks", EXPERTS, named, hidden)


def test_as_many_outputs_as_experts_beside_them() -> None:
    assert routers(mlp__gate=8, mlp__shared__up=64, mlp__shared__down=32, self_attn__q=8) == {"mlp.gate"}


def test_all_of_a_router_of_several_layers() -> None:
    assert routers(mlp__router__down=16, mlp__router__out=8, mlp__other=4) == {"mlp.router.down", "mlp.router.out"}


def test_a_few_outputs_more() -> None:
    """For experts that every token meets, or for none."""
    assert routers(mlp__gate=10, mlp__shared__up=12, mlp__shared__down=32, mlp__latent=64) == {"mlp.gate"}


def test_above_the_mixture_it_is_no_part_that_writes_a_hidden_state() -> None:
    assert routers(self_attn__k=8, self_attn__o=32, router=8) == {"router"}
    assert routers(self_attn__k=8, self_attn__o=32) == set()


def test_matrices_in_groups_have_no_router() -> None:
    """A grouped projection is a stack, too."""
    groups = {"blocks.0.attn.o_groups": 2}
    named = {f"blocks.0.attn.{name}.weight": out for name, out in {"q_a": 16, "kv": 8, "o_b": 32}.items()}
    assert find_routers("blocks", groups, named, 32) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("dots3_note_text", {"layers.1.mlp.gate"}),
        ("inkling_text", {"layers.1.mlp.gate"}),
        ("deepseek_v3", {"layers.1.mlp.gate"}),
        ("deepseek_v4", {"layers.1.mlp.gate", "layers.0.mlp.gate"}),
        (
            "zaya",
            {
                f"layers.{block}.mlp.gate.{name}"
                for block in (0, 1)
                for name in ("down_proj", "router_mlp.fc1", "router_mlp.fc2", "router_mlp.out_proj")
            },
        ),
    ],
)
def test_routers_of_families(family: str, expected: set[str], dtype: torch.dtype) -> None:
    """Some multiply by a copy of the weight in float32."""
    found = take_inventory(families.build(family).to(dtype)).skipped
    chosen = {name for name, reason in found if "chooses among the experts" in reason}
    assert {name.removeprefix("model.").removesuffix(".weight") for name in chosen} == expected
