"""Fixtures shared by the rooms' tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: no test asks the network, wherever it runs

import pytest
import tiny
import torch
from transformers import PreTrainedModel

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: children would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def accelerator() -> torch.device:
    """The device of tests marked `gpu`; without one they are skipped. ZPRUNER_TEST_DEVICE: another device's name."""
    name = os.environ.get("ZPRUNER_TEST_DEVICE")
    if name == "pretend":
        import pretend  # noqa: F401 - registers it
    found = torch.device(name) if name else torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        pytest.skip("no accelerator")
    return found


@pytest.fixture(scope="session")
def llama_model() -> PreTrainedModel:
    """A tiny Llama; tests must not change it."""
    return tiny.build("llama")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's checkpoint folder with a tokenizer."""
    return tiny.save_checkpoint(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project after a whole `dvc repro`; tests copy it (`shutil.copytree`) and change the copy."""
    root = tiny.make_project(tmp_path_factory.mktemp("project") / "finished")
    executed = tiny.repro(root)
    assert executed[-1] == "report"
    return root
