"""A real node, one for each test file that asks for it."""

from collections.abc import Iterator

import pytest
from served_node import RunningNode, serving


@pytest.fixture(scope="module")
def running_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    yield from serving(tmp_path_factory.mktemp("node"))
