"""A load of uploads, overwrites and deletions that goes on while its store is killed and started again."""

import hashlib
import io
import random
import threading
import time
import zlib
from collections import defaultdict
from dataclasses import dataclass

import urllib3
from minio import Minio
from minio.error import MinioException
from s3_servers import S3Server

THREADS = 8
PATIENCE_S = 60.0
"""How long one step is tried while the object store is away."""

_AGAIN_S = 0.05


@dataclass(frozen=True)
class Step:
    key: str
    deletes: bool = False


def plan(
    count: int, chance: random.Random, *, overwrites: float = 0.35, deletions: float = 0.04
) -> list[Step]:
    """Uploads of new keys, among them overwrites and deletions of earlier ones in the shares given.

    Every 50th overwritten key is one of three that are replaced again and again.
    """
    steps: list[Step] = []
    keys: list[str] = []
    for number in range(count):
        drawn = chance.random()
        if keys and drawn < deletions:
            steps.append(Step(chance.choice(keys), deletes=True))
        elif keys and drawn < deletions + overwrites:
            steps.append(Step(chance.choice(keys[:3] if number % 50 == 0 else keys)))
        else:
            keys.append(f"{number % 7}/a file+{number} é%20.csv")
            steps.append(Step(keys[-1]))
    return steps


class UploadLoad:
    """Takes the steps of a plan with several threads, those of one key in order and by one thread.

    Each attempt to upload has a body of its own and the client repeats none, so an ETag names one attempt.
    """

    def __init__(self, server: S3Server, bucket: str, steps: list[Step]) -> None:
        self.attempted: dict[str, set[str]] = defaultdict(set)
        """The ETags that an upload was tried with, by key."""

        self.standing: dict[str, str] = {}
        """What must be in the bucket in the end: the ETag by key."""

        self._server = server
        self._bucket = bucket
        self._steps = steps
        self._done = 0
        self._failure: BaseException | None = None
        self._moved = threading.Condition()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(THREADS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait_done(self, count: int, *, within_s: float) -> None:
        """Return when so many steps are done; raises what stopped a thread."""
        with self._moved:
            moved = self._moved.wait_for(
                lambda: self._done >= count or self._failure is not None, timeout=within_s
            )
            if self._failure is not None:
                raise self._failure
            assert moved, f"only {self._done} of {count} steps in {within_s:g} s"

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        client = self._server.client(retries=False)
        mine = [step for step in self._steps if zlib.crc32(step.key.encode()) % THREADS == number]
        for serial, step in enumerate(mine):
            try:
                self._take(client, step, f"{number} {serial}")
            except BaseException as error:
                with self._moved:
                    self._failure = error
                    self._moved.notify_all()
                return
            with self._moved:
                self._done += 1
                self._moved.notify_all()

    def _take(self, client: Minio, step: Step, name: str) -> None:
        end, attempt = time.monotonic() + PATIENCE_S, 0
        while True:
            attempt += 1
            try:
                self._try(client, step, f"{step.key} {name} {attempt}\n".encode())
                return
            except (MinioException, urllib3.exceptions.HTTPError):
                if time.monotonic() > end:
                    raise
                time.sleep(_AGAIN_S)

    def _try(self, client: Minio, step: Step, body: bytes) -> None:
        if step.deletes:
            client.remove_object(self._bucket, step.key)
            self.standing.pop(step.key, None)
            return
        etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
        self.attempted[step.key].add(etag)
        put = client.put_object(self._bucket, step.key, io.BytesIO(body), len(body))
        assert put.etag == etag
        self.standing[step.key] = etag
