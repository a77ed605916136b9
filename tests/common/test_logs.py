"""What a log line must never show. That lines are JSON, also of libraries, is tested on a process in test_runtime."""

import pytest

from libs.common.logs import without_password


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nats://a:1", "nats://a:1"),
        ("nats://me@a:1", "nats://a:1"),
        ("nats://me:pw@a:1,tls://you:p@ss@b:2, ws://c", "nats://a:1,tls://b:2, ws://c"),
        ("failed: nats://me:pw@a:1/x?mail=me@b (twice)", "failed: nats://a:1/x?mail=me@b (twice)"),
        ("mail me@there", "mail me@there"),
    ],
)
def test_urls_lose_user_and_password_and_nothing_else_changes(text: str, shown: str) -> None:
    assert without_password(text) == shown
