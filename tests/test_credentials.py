"""No message shows a password, a token or a query string of a URL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpruner.errors import SourceError, without_credentials

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
