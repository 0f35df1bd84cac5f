"""A proxy between a store and a node that loses, repeats and delays the events that pass through it."""

import asyncio
import contextlib
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import urllib3
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

HELD_MAX = 20_000
"""Deliveries that are held back at one time; more than that are passed on at once."""

_PASSED_ON = ("authorization", "content-type")
_FORWARD_S = 30.0
_CONNECTIONS = 16


@dataclass(frozen=True)
class Weather:
    """What may happen to a delivery; the shares lie between 0 and 1, and each is drawn by itself.

    Args:
        dropped: acknowledged and lost, or else refused.
        refused: of the dropped ones, the share that is not even acknowledged.
        doubled: passed on twice, at the same time.
        reordered: acknowledged, and passed on after up to `held_s` seconds.
    """

    dropped: float = 0.0
    refused: float = 0.0
    doubled: float = 0.0
    reordered: float = 0.0
    held_s: float = 1.0


FAIR = Weather()


class WebhookProxy:
    """Serves `url(name)` for each name of `weather`, and passes on to any of `nodes`, which may change.

    While there is none, or the one that was chosen does not answer, a delivery gets 502, as from any proxy.
    """

    def __init__(self, weather: dict[str, Weather], chance: random.Random) -> None:
        self.weather = weather
        self.nodes: list[str] = []
        self.fates: Counter[str] = Counter()
        """How many deliveries met which fate: passed, swallowed, refused, doubled, held, unreachable."""

        self.answers: Counter[int] = Counter()
        """How often the node gave which status."""

        self._chance = chance
        self._held: set[asyncio.Task[None]] = set()
        self._pool = urllib3.PoolManager(maxsize=_CONNECTIONS, block=True, retries=False, timeout=_FORWARD_S)
        self._threads = ThreadPoolExecutor(_CONNECTIONS)
        self._socket = socket.create_server(("127.0.0.1", 0))
        routes = [Route("/{name}/{path:path}", self._receive, methods=["GET", "HEAD", "POST"])]
        self._server = uvicorn.Server(
            uvicorn.Config(
                Starlette(routes=routes), log_level="warning", access_log=False, ws="none", lifespan="off"
            )
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def url(self, name: str) -> str:
        """Where deliveries come in for which `weather[name]` holds."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/{name}/v1/events/minio"

    @property
    def held(self) -> int:
        """Deliveries that were acknowledged and are still to be passed on."""
        return len(self._held)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._threads.shutdown()
        self._pool.clear()
        self._socket.close()

    async def _receive(self, request: Request) -> Response:
        weather = self.weather[request.path_params["name"]]
        path, method, body = request.path_params["path"], request.method, await request.body()
        if request.url.query:
            path += f"?{request.url.query}"
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        drawn = {
            fate: self._chance.random() < getattr(weather, fate)
            for fate in ("dropped", "refused", "doubled", "reordered")
        }
        if drawn["dropped"]:
            self.fates["refused" if drawn["refused"] else "swallowed"] += 1
            return Response(status_code=503 if drawn["refused"] else 200)
        times = 2 if drawn["doubled"] else 1
        self.fates["doubled"] += times - 1
        if drawn["reordered"] and len(self._held) < HELD_MAX:
            self.fates["held"] += 1
            for _ in range(times):
                late = asyncio.create_task(
                    self._pass_late(self._chance.uniform(0, weather.held_s), method, path, body, headers)
                )
                self._held.add(late)
                late.add_done_callback(self._held.discard)
            return Response(status_code=200)
        self.fates["passed"] += 1
        answers = await asyncio.gather(*(self._pass_on(method, path, body, headers) for _ in range(times)))
        return Response(status_code=answers[0])

    async def _pass_late(
        self, seconds: float, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> None:
        await asyncio.sleep(seconds)
        await self._pass_on(method, path, body, headers)

    async def _pass_on(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> int:
        """The node's status, 502 when there was none."""
        if self.nodes:
            node = self._chance.choice(self.nodes)
            ask = asyncio.get_running_loop().run_in_executor
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                answer = await ask(
                    self._threads,
                    lambda: self._pool.request(method, f"{node}/{path}", body=body, headers=headers),
                )
                self.answers[answer.status] += 1
                return answer.status
        self.fates["unreachable"] += 1
        return 502


@contextlib.contextmanager
def webhook_proxy(weather: dict[str, Weather], chance: random.Random) -> Iterator[WebhookProxy]:
    proxy = WebhookProxy(weather, chance)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
