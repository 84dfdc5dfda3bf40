"""The nightly flow: sources refreshed, results compared, a worse one reported every night until accepted."""

from __future__ import annotations

import json
import math

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from toys import Toy

from flows.nightly import BASELINE, WorseResultError, compare, main, nightly
from zpruner.errors import ArtifactError, UnknownNameError

pytestmark = pytest.mark.usefixtures("quick", "worker")


def test_a_worse_result_fails_until_it_is_accepted(toy: Toy) -> None:
    assert nightly(str(toy.root), refresh=["base"]) == {"last": 51.0}
    assert nightly(str(toy.root), refresh=["base"]) == {"last": 51.0}
    assert toy.runs().count("base") == 2  # refreshed; the same bytes came, so nothing else ran
    assert len(toy.runs()) == 6
    toy.change("part", "p0", value=12345)
    for _ in range(2):
        with pytest.raises(WorseResultError, match=r"perplexity for last \(51 -> 55\).*delete"):
            nightly(str(toy.root), margin=0.05)
    assert nightly(str(toy.root), margin=0.1) == {"last": 55.0}
    assert json.loads((toy.root / BASELINE).read_text()) == {"last": 55.0}
    with pytest.raises(UnknownNameError, match=r"metric: got 'perplexty', expected what a result has.*'perplexity'"):
        nightly(str(toy.root), metric="perplexty")
    (toy.root / BASELINE).write_text("{")
    with pytest.raises(ArtifactError, match=r"nightly\.json: got content that is no table of results.*Delete it"):
        nightly(str(toy.root))


def test_a_schedule_needs_a_server_and_settings_are_checked(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(toy.root)
    with temporary_settings({PREFECT_API_URL: None}):
        assert main(["--cron", "0 2 * * *"]) == 1
    assert "error: PREFECT_API_URL: got nothing, expected a Prefect server's address" in capsys.readouterr().err
    assert main(["--refresh", "bse"]) == 1
    assert "Did you mean 'base'" in capsys.readouterr().err
    assert toy.runs() == []


def test_comparison() -> None:
    before = {"a": 10.0, "b": 10.0, "c": 10.0, "d": math.nan, "gone": 1.0}
    assert compare(before, {"a": 10.2, "b": 10.21, "c": math.nan, "d": 5.0, "new": 99.0}, 0.02) == [
        "b (10 -> 10.21)",
        "c (10 -> nan)",
    ]
