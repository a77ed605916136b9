"""One stack for all tests of a test process that leave it as they found it; tests that break things start their own."""

from collections.abc import Iterator

import httpx
import pytest

from tests.support.clients import http
from tests.support.stack import Stack, running_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack"), "--no-demo") as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    with http(stack) as made:
        yield made
