"""Uploads while everything between the store and the function fails: each has its effect, and has it once.

What is uploaded, overwritten and deleted, and the fate of each delivery, come from one seed: `$FAULT_SEED`,
else a random one, which a failure shows. Scaled down by default; `make test-full` takes 10,000 steps.
"""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_servers import MinioServer, S3Server, VersityServer
from upload_load import UploadLoad, plan
from upload_scene import BUCKET, SECRET, SENTINEL, Scene, scene_of
from webhook_proxy import FAIR, Weather, WebhookProxy, webhook_proxy

pytestmark = pytest.mark.service

SMALL = {"steps": 400, "node_kills": 1, "store_kills": 1}
FULL = {"steps": 10_000, "node_kills": 5, "store_kills": 2}
PATIENCE_S = 300.0
IMMEDIATE, QUEUED = "immediate", "queued"
FATES = ("passed", "swallowed", "refused", "doubled", "held", "unreachable")
STORM = {
    IMMEDIATE: Weather(dropped=0.2, refused=0.5, doubled=0.2, reordered=0.2),
    # MinIO waits 3 s after each refusal of the event at the head of its queue.
    QUEUED: Weather(dropped=0.2, refused=0.01, doubled=0.2, reordered=0.2),
}


def storm(scene: Scene, chance: random.Random, *, steps: int, node_kills: int, store_kills: int) -> None:
    """Upload while the node and the store are killed and started again, then settle the account."""
    load = UploadLoad(scene.server, BUCKET, plan(steps, chance))
    kills: list[Callable[[], object]] = [lambda: chance.choice(scene.nodes).kill()] * node_kills
    kills += [lambda: scene.server.restart(crash=True)] * store_kills
    chance.shuffle(kills)
    load.start()
    try:
        for number, kill in enumerate(kills, 1):
            load.wait_done(steps * number // (len(kills) + 1), within_s=PATIENCE_S)
            kill()
            if not all(node.alive for node in scene.nodes):
                # Some uploads do not meet the node that is gone, whatever the speed of the machine.
                load.wait_done(steps * (2 * number + 1) // (2 * len(kills) + 2), within_s=PATIENCE_S)
                scene.start_nodes()
        load.wait_done(steps, within_s=PATIENCE_S)
    finally:
        load.join()
    settle(scene, load)


def settle(scene: Scene, load: UploadLoad) -> None:
    """Each upload that stands has exactly one effect, none has two, and the node's books say the same."""
    listed = scene.listed()
    assert listed == load.standing, "the load does not know what it left"
    scene.wait_noted(set(listed.items()), within_s=PATIENCE_S)
    scene.wait_deliveries(within_s=PATIENCE_S)
    scene.let_sweeps_pass(2)
    stats = scene.wait_quiet(within_s=PATIENCE_S)

    effects = scene.noted()
    times = Counter(effect for effect in effects.values() if not effect[0].startswith(SENTINEL))
    assert {effect: n for effect in listed.items() if (n := times[effect]) != 1} == {}
    assert {effect: n for effect, n in times.items() if n > 1} == {}
    assert {effect for effect in times if effect[1] not in load.attempted[effect[0]]} == set()
    assert stats["succeeded"] == stats["accepted"] == len(effects)
    scene.node.check_books()


# ---- the tests ----


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("FAULT_SEED") or random.randrange(1 << 32))
    print(f"FAULT_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def proxy(chance: random.Random) -> Iterator[WebhookProxy]:
    with webhook_proxy({IMMEDIATE: FAIR, QUEUED: FAIR}, chance) as proxy:
        yield proxy


def in_a_storm_of_deliveries(
    server: MinioServer,
    proxy: WebhookProxy,
    folder: Path,
    chance: random.Random,
    *,
    database: str | None = None,
    **size: int,
) -> None:
    server.env = server.webhook_targets(proxy.url(IMMEDIATE), SECRET, queued_url=proxy.url(QUEUED))
    count = 1 if database is None else 2
    with scene_of(server, folder, proxy=proxy, count=count, database=database) as scene:
        scene.connect()
        proxy.weather.update(STORM)
        storm(scene, chance, **size)
        print(dict(proxy.fates))
        assert {fate for fate in FATES if proxy.fates[fate] == 0} == set()


def with_sweeps_only(server: S3Server, folder: Path, chance: random.Random, **size: int) -> None:
    with scene_of(server, folder) as scene:
        storm(scene, chance, **size)


@pytest.mark.timeout(240)
def test_uploads_have_one_effect_each_whatever_becomes_of_their_notifications(
    own_minio: MinioServer, proxy: WebhookProxy, tmp_path: Path, chance: random.Random
) -> None:
    in_a_storm_of_deliveries(own_minio, proxy, tmp_path, chance, **SMALL)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_uploads_have_one_effect_each_whichever_of_two_nodes_is_told_of_them(
    own_minio: MinioServer, proxy: WebhookProxy, tmp_path: Path, chance: random.Random, postgres_url: str
) -> None:
    in_a_storm_of_deliveries(
        own_minio, proxy, tmp_path, chance, database=postgres_url, steps=2_000, node_kills=4, store_kills=1
    )


@pytest.mark.timeout(240)
def test_uploads_to_minio_have_one_effect_each_without_notifications(
    own_minio: MinioServer, tmp_path: Path, chance: random.Random
) -> None:
    with_sweeps_only(own_minio, tmp_path, chance, **SMALL)


@pytest.mark.timeout(240)
def test_uploads_to_another_s3_have_one_effect_each_without_notifications(
    own_versity: VersityServer, tmp_path: Path, chance: random.Random
) -> None:
    with_sweeps_only(own_versity, tmp_path, chance, **SMALL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_uploads_have_one_effect_each_whatever_becomes_of_their_notifications(
    own_minio: MinioServer, proxy: WebhookProxy, tmp_path: Path, chance: random.Random
) -> None:
    in_a_storm_of_deliveries(own_minio, proxy, tmp_path, chance, **FULL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_uploads_to_minio_have_one_effect_each_without_notifications(
    own_minio: MinioServer, tmp_path: Path, chance: random.Random
) -> None:
    with_sweeps_only(own_minio, tmp_path, chance, **FULL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_uploads_to_another_s3_have_one_effect_each_without_notifications(
    own_versity: VersityServer, tmp_path: Path, chance: random.Random
) -> None:
    with_sweeps_only(own_versity, tmp_path, chance, **FULL)
