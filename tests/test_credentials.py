"""No message shows a password, a token or a query string of a URL, nor anything that a terminal obeys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpruner.errors import SourceError, shown, without_credentials
from zpruner.sources._quote import quoted

SAFE = st.text("abcdefghijklmnop0123456789", min_size=1, max_size=8)
SECRET = st.text("qrstuvwxyzQRSTUVWXYZ!$%^*()_+=@:/~", min_size=1, max_size=20).map(lambda text: f"S3CR3T{text}T3RC3S")


@pytest.mark.parametrize(
    ("text", "shown", "bare"),
    [
        ("ssh://me@host/p", "ssh://me@host/p", "ssh://me@host/p"),
        ("ssh://me:pw@host:22/p", "ssh://me:***@host:22/p", "ssh://me@host:22/p"),
        ("ssh://me:1234@host/p", "ssh://me:***@host/p", "ssh://me@host/p"),
        ("https://ghp_abc@host/p", "https://***@host/p", "https://host/p"),
        ("s3://KEY:SEC/RET@bucket/p", "s3://***@bucket/p", "s3://bucket/p"),
        ("'https://h/p?sig=abc&x=1' (no)", "'https://h/p?***' (no)", "'https://h/p' (no)"),
        ("https://host:8080/a@b", "https://host:8080/a@b", "https://host:8080/a@b"),
        ("ssh://me%3Apw@host/p", "ssh://me:***@host/p", "ssh://me@host/p"),
        ("me:pw@host:p", "***@host:p", "host:p"),
        ("https:/me:pw@host/p", "https:/***@host/p", "https:/host/p"),
        ("https://h/p#access_token=abc", "https://h/p#access_token=***", "https://h/p#access_token="),
        ("https://h/p?tok='abc'", "https://h/p?***'", "https://h/p'"),
        ("git@github.com:org/repo, dvc.yaml:score@wanda", *["git@github.com:org/repo, dvc.yaml:score@wanda"] * 2),
        ("hf:a/b@main?token=hf_abcdefghijklmnop1", "hf:a/b@main?token=***", "hf:a/b@main?token="),
        ("Did you mean 'x'? See a/b@main.", "Did you mean 'x'? See a/b@main.", "Did you mean 'x'? See a/b@main."),
    ],
)
def test_what_is_hidden_and_what_is_not(text: str, shown: str, bare: str) -> None:
    assert without_credentials(text) == shown
    assert without_credentials(text, mark="") == bare


@given(scheme=st.sampled_from(["ssh", "https", "s3", "webdavs"]), user=SAFE, host=SAFE, path=SAFE, secret=SECRET)
def test_no_message_holds_a_password_or_a_query(scheme: str, user: str, host: str, path: str, secret: str) -> None:
    for url in (f"{scheme}://{user}:{secret}@{host}/{path}", f"{scheme}://{host}/{path}?{user}={secret}"):
        message = str(SourceError(url, repr(url), f"a file ({url})", f"Look at {url}."))
        assert "S3CR3T" not in message
        assert host in message


@pytest.mark.parametrize("length", [50, 130, 390, 3000, 9000])
def test_half_a_password_is_not_shown_either(length: int) -> None:
    url = f"https://me:{'S3CR3T' * (length // 6)}@host/p"
    for part in (url, shown(url), f"a model at {url}"):
        message = str(SourceError(part, part, part, f"Look at {part}."))
        assert "S3CR3T" not in message
        assert "host" in message


@pytest.mark.parametrize("text", ["\x1b[2Jx", "a\rb", "\x9b31m", "\u202ex", "\udcff", "\0"])
def test_a_message_is_one_printable_line(text: str) -> None:
    assert str(SourceError(text, text, text, f"Did you mean '{text}'?")).isprintable()


def test_a_source_is_quoted_whole_or_without_what_may_be_secret() -> None:
    for source in ("https://h/p?a=b c=S3CR3T", "https://us er:S3CR3T@h/p", "me:S3CR3T@host:p", "//me:S3CR3T@host/p"):
        assert "S3CR3T" not in quoted(source)
