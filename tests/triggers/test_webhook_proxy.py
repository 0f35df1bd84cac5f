"""The proxy that the tests of uploads put between a store and a node does to deliveries what it counts."""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import urllib3
from webhook_proxy import FAIR, Weather, WebhookProxy, webhook_proxy

from tests.serving import wait_until

DELIVERIES = 300


class Node:
    """A server that keeps the bodies that are sent to it."""

    def __init__(self) -> None:
        self.bodies: Counter[bytes] = Counter()
        self.shown: set[tuple[str, str | None]] = set()
        bodies, shown = self.bodies, self.shown

        class Receiver(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                bodies[self.rfile.read(int(self.headers["Content-Length"]))] += 1
                shown.add((self.path, self.headers["Authorization"]))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    serving = threading.Thread(target=node.server.serve_forever)
    serving.start()
    yield node
    node.server.shutdown()
    serving.join()
    node.server.server_close()


@pytest.fixture
def proxy() -> Iterator[WebhookProxy]:
    with webhook_proxy({"storm": FAIR}, random.Random(7)) as proxy:
        yield proxy


def deliver(proxy: WebhookProxy) -> Counter[int]:
    """The statuses of many deliveries, each with a body of its own."""
    with urllib3.PoolManager(retries=False, timeout=10) as pool:
        sent = [
            pool.request(
                "POST", proxy.url("storm"), body=f"{n}", headers={"Authorization": "Bearer x"}
            ).status
            for n in range(DELIVERIES)
        ]
    wait_until(lambda: proxy.held == 0, "what was held back to be passed on")
    return Counter(sent)


def test_in_fair_weather_each_delivery_arrives_once_where_it_was_sent(
    proxy: WebhookProxy, node: Node
) -> None:
    proxy.nodes = [node.url]

    assert deliver(proxy) == {200: DELIVERIES}
    assert node.bodies == {str(n).encode(): 1 for n in range(DELIVERIES)}
    assert node.shown == {("/v1/events/minio", "Bearer x")}


def test_without_a_node_deliveries_are_refused(proxy: WebhookProxy) -> None:
    assert deliver(proxy) == {502: DELIVERIES}


def test_in_a_storm_deliveries_arrive_as_often_as_the_proxy_says(proxy: WebhookProxy, node: Node) -> None:
    proxy.nodes = [node.url]
    proxy.weather["storm"] = Weather(dropped=0.2, refused=0.5, doubled=0.2, reordered=0.2, held_s=0.1)

    statuses = deliver(proxy)

    fates = proxy.fates
    assert all(fates[fate] > 0 for fate in ("passed", "swallowed", "refused", "doubled", "held"))
    assert statuses == {503: fates["refused"], 200: DELIVERIES - fates["refused"]}
    assert len(node.bodies) == fates["passed"] + fates["held"]
    assert node.bodies.total() == fates["passed"] + fates["held"] + fates["doubled"]
    assert set(node.bodies.values()) == {1, 2}
