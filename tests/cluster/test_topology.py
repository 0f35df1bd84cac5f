"""docker-compose.yml: it is well formed, and what it describes works, started as plain processes.

The processes get the file's own commands and environments; only hosts, ports and folders are this machine's.
"""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
import yaml
from postgres_server import PostgresServer, server_programs
from s3_servers import MinioServer, free_port, program_of

from functions import reviews
from headrace.runtime.cli.demo.reviews_file import write_reviews
from tests.serving import ROOT, Serving, clean_environment, run_command, wait_until

pytestmark = [pytest.mark.service, pytest.mark.timeout(120)]
FILE = ROOT / "docker-compose.yml"
SECRETS = {
    "HEADRACE_TOKEN": "token-of-the-callers",
    "HEADRACE_EVENTS_TOKEN": "token-of-minio",
    "MINIO_ROOT_PASSWORD": "password-of-minio",
    "POSTGRES_PASSWORD": "password-of-postgres",
}


def composed(variables: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """What `docker-compose config`, or `docker compose config`, makes of the file; neither needs a daemon."""
    standalone = shutil.which("docker-compose")
    command = [standalone] if standalone else ["docker", "compose"]
    if not standalone and subprocess.run([*command, "version"], capture_output=True, check=False).returncode:
        missing = "needs docker-compose: on Debian, apt-get install docker-compose"
        pytest.fail(missing) if os.environ.get("HEADRACE_REQUIRE_SERVICES") == "1" else pytest.skip(missing)
    return subprocess.run(
        [*command, "--file", str(FILE), "config"], text=True, capture_output=True, timeout=60, check=False,
        env={**clean_environment(), **variables}, cwd=ROOT,
    )  # fmt: skip


def test_the_file_is_well_formed_and_pins_its_images() -> None:
    done = composed(SECRETS)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert set(services) == {"minio", "postgres", "headrace-1", "headrace-2", "setup"}
    for name in ("minio", "postgres"):
        assert re.fullmatch(r"[a-z/]+:.*\d+.*", services[name]["image"]), "an image of no version"
    ports = [str(port) for service in services.values() for port in service.get("ports", [])]
    assert ports
    for port in ports:
        assert port.startswith("127.0.0.1:") or "127.0.0.1" in port


@pytest.mark.parametrize("name", SECRETS)
def test_nothing_starts_while_a_secret_is_not_set(name: str) -> None:
    done = composed({key: value for key, value in SECRETS.items() if key != name})
    assert done.returncode != 0
    assert "long random secret" in done.stderr


class Topology:
    """The services of the file as processes of this machine."""

    def __init__(self, folder: Path) -> None:
        text = re.sub(r"\$\{([A-Z_]+):\?[^}]*\}", lambda found: SECRETS[found[1]], FILE.read_text())
        self.services: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
        self.folder = folder
        programs = server_programs()
        assert programs is not None
        self.postgres = PostgresServer(programs)
        self.minio = MinioServer(program_of("minio"))
        self.ports = {f"headrace-{number}:8080": free_port() for number in (1, 2)}
        self.places = {
            "minio:9000": self.minio.endpoint,
            "postgres:5432": f"127.0.0.1:{self.postgres.port}",
            "127.0.0.1:9000": self.minio.endpoint,
            **{name: f"127.0.0.1:{port}" for name, port in self.ports.items()},
        }
        self.nodes = {name: self._node(name) for name in ("headrace-1", "headrace-2")}

    def start(self) -> None:
        self.postgres.start()
        given = self.environment("postgres")
        with psycopg.connect(self.postgres.url("postgres"), autocommit=True) as db:
            db.execute(f"CREATE DATABASE {given['POSTGRES_DB']}")
        environment = self.environment("minio")
        self.minio.access_key = environment["MINIO_ROOT_USER"]
        self.minio.secret_key = environment["MINIO_ROOT_PASSWORD"]
        folder = environment["MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_HEADRACEQ"]
        assert any(volume.endswith(f":{folder}") for volume in self.services["minio"]["volumes"])
        self.minio.env = {
            **environment, "MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_HEADRACEQ": str(self.minio.queue)
        }  # fmt: skip
        self.minio.start()
        for node in self.nodes.values():
            node.launch()
        for node in self.nodes.values():
            node.wait_ready()

    def set_up(self) -> None:
        """The commands of the service `setup`, one after the other."""
        service = self.services["setup"]
        assert service["entrypoint"] == ["sh", "-ec"]
        environment = self.environment("setup")
        for line in service["command"][0].splitlines():
            program, *arguments = shlex.split(line)
            assert program == "headrace"
            done = run_command(*arguments, env=environment)
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"

    def environment(self, service: str) -> dict[str, str]:
        """A service's own environment, with the places of this machine."""
        found = {}
        for name, value in self.services[service].get("environment", {}).items():
            assert isinstance(value, str), f"{service} has {name}={value!r}, which YAML makes no text"
            for place, here in self.places.items():
                value = value.replace(place, here)
            found[name] = value
        return found

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()
        self.minio.remove()
        self.postgres.stop()
        self.postgres.remove()

    def _node(self, name: str) -> Serving:
        command = self.services[name]["command"]
        assert command == ["serve", "/functions", "--data", "/data", "--host", "0.0.0.0"]
        assert "./functions:/functions:ro" in self.services[name]["volumes"]
        place = self.folder / name
        place.mkdir()
        return Serving(
            ROOT / "functions", folder=place, token=SECRETS["HEADRACE_TOKEN"],
            flags=["--port", str(self.ports[f"{name}:8080"])], env=self.environment(name),
        )  # fmt: skip


@pytest.fixture
def topology(tmp_path: Path) -> Iterator[Topology]:
    found = Topology(tmp_path)
    try:
        found.start()
        yield found
    except BaseException:
        for node in found.nodes.values():
            sys.stderr.write(node.words()[-3000:])
        raise
    finally:
        found.close()


def job_over(node: Serving, key: str) -> dict[str, Any]:
    """The end of the job over an upload, as this node tells it."""

    def look() -> str | None:
        found = node.client.jobs(function="reviews.score")
        return next((job["job_id"] for job in found if job["input"]["object"].endswith(f"/{key}")), None)

    return node.client.job(wait_until(look, f"a job over {key}")).wait(60)


def expected_of(path: Path) -> dict[str, Any]:
    with path.open(newline="", encoding="utf-8") as file:
        return reviews.summary(reviews.tally(csv.DictReader(file)))


def test_an_upload_to_minio_becomes_its_result_there_also_when_a_node_is_gone(
    topology: Topology, tmp_path: Path
) -> None:
    topology.set_up()
    one, two = topology.nodes["headrace-1"], topology.nodes["headrace-2"]
    file = tmp_path / "many reviews.csv"
    write_reviews(file, 400_000, Random(7))
    expected = expected_of(file)

    done = run_command("objects", "put", file, "s3://inbox/", env=topology.environment("setup"))
    assert done.returncode == 0, done.stderr
    job = job_over(two, file.name)  # whichever node took it, both know it
    assert job["status"] == "succeeded", job
    written = json.loads(two.client.get_object(f"s3://results/{job['job_id']}/result.json"))
    assert written["reviews"] == expected["reviews"]
    assert written["mean_compound"] == pytest.approx(expected["mean_compound"], rel=1e-9)

    one.kill()  # where MinIO tells at once; the other target leads elsewhere
    topology.minio.client().fput_object("inbox", "second.csv", str(file))
    job = job_over(two, "second.csv")
    assert job["status"] == "succeeded", job
    one.start()

    names = sorted(job["input"]["object"] for job in one.client.jobs(function="reviews.score"))
    assert len(names) == len(set(names)) == 2
    wait_until(lambda: topology.minio.queued() == 0, "all that was queued to be delivered")
    one.check_books()
