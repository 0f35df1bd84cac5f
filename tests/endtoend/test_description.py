"""A node held to its own description: schemathesis tries what `/openapi.json` says. Each request, fitting or
not, must get an answer that the description has, and never a failure of the node's own.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace import Client
from tests.serving import Serving, clean_environment, serving

HERE = Path(__file__).parent
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_schema_conformance", "response_headers_conformance",
)  # fmt: skip
# An id that nobody has is waited for, a minute at the most; and a stopping node stops what is tried.
LEFT_OUT = ("/v1/invocations/wait",)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None, reason="needs schemathesis: pip install '.[test]'"
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("description")
    with serving(HERE / "described_functions.py", folder=folder, workers=2) as found:
        fill(found.client)
        yield found


def fill(client: Client) -> None:
    """Something to be found: an invocation, a dead one, a job, an object."""
    client.submit("described.take", {"body": []}).result(timeout=20)
    client.submit("described.order", {"number": "none"})
    client.submit_job("described.total", [1, 2, 3], wait=True)
    client.make_bucket("inbox")
    client.put_object("s3://inbox/a.txt", b"some bytes")


def try_out(node: Serving, folder: Path, *more: str, timeout_s: float) -> None:
    """Have the description tried. Raises AssertionError with what was found."""
    token = (node.data / "token").read_text().strip()
    left_out = [part for path in LEFT_OUT for part in ("--exclude-path", path)]
    ran = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml"), "run",
            f"{node.client.url}/openapi.json", "-H", f"Authorization: Bearer {token}",
            "--checks", ",".join(CHECKS), "--generation-deterministic", "--no-color", *left_out, *more,
        ],
        cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-12_000:] + ran.stderr[-2000:]
    assert "Selected:" in ran.stdout
    assert "a request failed" not in node.words()


def test_routes_answer_as_they_are_described(node: Serving, tmp_path: Path) -> None:
    try_out(
        node, tmp_path, "--phases", "examples,coverage,fuzzing", "-n", "3", "--exclude-path-regex", "^/v1",
        timeout_s=100,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_whole_node_answers_as_it_is_described(node: Serving, tmp_path: Path) -> None:
    try_out(node, tmp_path, "-n", "40", "--request-timeout", "75", timeout_s=1400)
