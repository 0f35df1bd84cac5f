"""What holds for every test: a scrubbed environment, repeatable hypothesis runs, data beside the clone."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from postgres_server import postgres_server, postgres_url
from s3_servers import minio_server, own_minio, own_versity, versity_server

__all__ = [
    "minio_server",
    "own_minio",
    "own_versity",
    "postgres_server",
    "postgres_url",
    "shared_data",
    "versity_server",
]

ROOT = Path(__file__).resolve().parent.parent

# Nodes and workers that tests start inherit this environment, so it is scrubbed before anything is imported.
_KEPT = {"HEADRACE_REQUIRE_SERVICES", "HEADRACE_MINIO", "HEADRACE_VERSITYGW"}
for _name in [name for name in os.environ if name.startswith("HEADRACE_") and name not in _KEPT]:
    del os.environ[_name]

# No deadline: how long one example takes says more about the machine than about the code.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_configure(config: pytest.Config) -> None:
    """A checkout whose installation is older than the plugin has no entry point of it yet."""
    if not config.pluginmanager.hasplugin("headrace"):
        from headrace.runtime.testing import plugin

        config.pluginmanager.register(plugin, "headrace")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of large input files beside the clone; a test that needs it skips where there is none."""
    data = ROOT.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip("needs the data files in ../shared/data beside the clone, and there are none")
    return data
