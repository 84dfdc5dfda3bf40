"""The model card of a pruned checkpoint."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from zpruner.checkpoint.card import HONESTY, LATER, PruningFacts, model_card, read_metadata, with_results

FACTS = PruningFacts(
    base="hf:acme/tiny-7b@0123456789abcdef0123456789abcdef01234567",
    method="wanda",
    pattern="2:4",
    settings={"score": "wanda", "group": "row", "update": {"name": "obs", "settings": {"damping": 0.02}}},
    calibration={"source": "news.txt", "sha256": None, "nsamples": 32, "seqlen": 512, "seed": 3},
)


def metadata(card: str) -> dict[str, object]:
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert match is not None
    return YAML(typ="safe", pure=True).load(match[1])


def test_metadata_is_hugging_face_s(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: llama2\nlanguage: [en, de]\ntags: [chat]\n---\n# Tiny\n")
    found = metadata(model_card(tmp_path, FACTS))
    assert found == {
        "base_model": "acme/tiny-7b",
        "license": "llama2",
        "language": ["en", "de"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["zpruner", "pruned", "sparse", "sparsity-2-4", "wanda"],
    }


def test_hugging_face_reads_it(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(model_card(tmp_path, FACTS))
    assert card.data.base_model == "acme/tiny-7b"
    assert card.data.library_name == "transformers"


@pytest.mark.parametrize("base", ["models/mine", "pip:package==1.0/inside/model.gguf"])
def test_what_is_not_on_the_hub_is_no_base_model_but_is_named(tmp_path: Path, base: str) -> None:
    card = model_card(tmp_path, replace(FACTS, base=base))
    assert "base_model" not in metadata(card)
    assert f"from `{base}`" in card
    assert "licence is not recorded" in card


def test_an_unhubbed_source_keeps_the_dense_card_s_base_model(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nbase_model: acme/other\n---\n")
    assert metadata(model_card(tmp_path, replace(FACTS, base="models/mine")))["base_model"] == "acme/other"


def test_a_copy_of_a_model_on_the_hub_names_it(tmp_path: Path) -> None:
    card = model_card(tmp_path, replace(FACTS, base="models/mine", origin=FACTS.base))
    assert metadata(card)["base_model"] == "acme/tiny-7b"
    assert f"from `models/mine`, made from `{FACTS.base}`. " in card


def test_everything_known_is_said(tmp_path: Path) -> None:
    results = {"perplexity": (27.839218, 31.5)}
    card = model_card(tmp_path, replace(FACTS, sparsity=0.5, layer_error=0.12345, results=results))
    for text in (
        HONESTY,
        "neither smaller nor faster",
        "| pattern | `2:4 (2 of every 4 inputs kept)` |",
        "| update.settings.damping | `0.02` |",
        "| windows | `32` |",
        "| zeros among the prunable weights | `50.0000%` |",
        "| mean layer error | `0.1235` |",
        "| perplexity | 27.8392 | 31.5 |",
        "AutoModelForCausalLM.from_pretrained",
    ):
        assert text in card, text
    assert "SHA-256" not in card, "an unknown hash must not be shown"


def test_an_estimated_layer_error_says_so(tmp_path: Path) -> None:
    card = model_card(tmp_path, replace(FACTS, layer_error=0.1, layer_error_from="diagonal"))
    assert "mean layer error, inputs taken as uncorrelated" in card


def test_before_evaluation_nothing_is_claimed(tmp_path: Path) -> None:
    card = model_card(tmp_path, FACTS)
    assert "## Result" not in card
    assert "metric" not in card


def test_results_are_added_once_they_are_known(tmp_path: Path) -> None:
    results = {"perplexity (4 windows of 32 tokens)": (27.8, 31.5)}
    late = with_results(model_card(tmp_path, replace(FACTS, note=LATER)), results)
    assert late == model_card(tmp_path, replace(FACTS, results=results))
    assert with_results("# another card\n", results).startswith("# another card\n| metric | dense | pruned |")


def test_the_calibration_text_is_added_once_it_is_known(tmp_path: Path) -> None:
    late = with_results(model_card(tmp_path, FACTS), {}, {"source": "hf:a/b@c", "seed": 7})
    table = late.partition("## Calibration\n")[2].partition("## Use")[0]
    assert table.startswith("\n| | |\n|---|---|\n| text | `hf:a/b@c` |\n| seed | `7` |\n| ")
    assert late.count("| text |") == 1 or "source" in FACTS.calibration


def test_equal_facts_give_equal_text(tmp_path: Path) -> None:
    assert model_card(tmp_path, FACTS) == model_card(tmp_path, replace(FACTS))


def test_an_unstructured_ratio(tmp_path: Path) -> None:
    card = model_card(tmp_path, replace(FACTS, pattern="0.65", method="zpruner"))
    assert "(0.65 of the weights removed)" in card
    assert metadata(card)["tags"] == ["zpruner", "pruned", "sparse", "sparsity-unstructured"]


def test_text_cannot_break_out_of_its_table(tmp_path: Path) -> None:
    card = model_card(tmp_path, replace(FACTS, method="a|b`<script>\n---\nlicense: mine\n---"))
    assert "<script>" not in re.sub(r"`[^`\n]*`", "", card.split("---\n", 2)[2])
    found = metadata(card)
    assert "license" not in found
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (3, 4) for line in card.splitlines() if line.startswith("|"))


@pytest.mark.parametrize(
    "text", ["", "# no metadata\n", "---\n[unclosed\n---\n", "---\n- a list\n---\n", "---\nopen\n"]
)
def test_a_dense_card_without_metadata(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert read_metadata(tmp_path / "README.md") == {}


def test_a_dense_card_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"\xff\xfe\x00")
    assert read_metadata(tmp_path / "README.md") == {}
    assert read_metadata(tmp_path / "missing.md") == {}


def test_metadata_that_is_a_bomb_or_has_no_end(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    aliases = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    for text in (f"a0: &a0 [x]\n{aliases}", "license: " + "[" * 50000, "license: mit\n" + "x: y\n" * 100_000):
        card.write_text(f"---\n{text}\n---\n# Tiny\n")
        assert read_metadata(card) == {}
        assert len(model_card(tmp_path, FACTS)) < 10_000
    card.write_text("---\nlicense: mit\n---\n" + "long\n" * 1_000_000)
    assert read_metadata(card) == {"license": "mit"}
