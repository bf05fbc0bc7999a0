"""A small MCP server over HTTP, for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.mcp_server import Running


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    from support.mcp_server import running  # most files need no such server

    with running() as run:
        yield run


@pytest.fixture
def small(shared: Running) -> Running:
    return shared.apart()
