"""Limits as they are declared, and what is refused."""

from typing import Any

import pytest

from headrace import App, Items
from headrace.runtime.errors import InvalidFunction
from headrace.runtime.model.limits import NO_LIMITS, Limits, limits_of
from headrace.runtime.model.spec import FunctionSpec

MIB = 1 << 20


def declared(**settings: Any) -> FunctionSpec:
    app = App("shop")

    @app.function(**settings)
    def work(event: Any) -> None: ...

    return app.declared["shop.work"].spec


@pytest.mark.parametrize(
    ("settings", "rate", "burst"),
    [
        ({"rate": "100/s"}, 100.0, 10.0),
        ({"rate": "100/s:20"}, 100.0, 20.0),
        ({"rate": "100/s", "rate_burst": 20}, 100.0, 20.0),
        ({"rate": "30/m"}, 0.5, 1.0),
        ({"rate": "1800 / h : 7"}, 0.5, 7.0),
        ({"rate": "0.5/s"}, 0.5, 1.0),
        ({"rate": None}, None, 1.0),
    ],
)
def test_a_rate_is_so_many_in_a_time(settings: dict[str, Any], rate: float | None, burst: float) -> None:
    spec = declared(**settings)
    assert (spec.rate, spec.rate_burst) == (rate, burst)


def test_a_key_is_found_at_a_path_and_has_one_at_a_time() -> None:
    spec = declared(concurrency_key="customer.id")
    assert (spec.concurrency_key, spec.key_concurrency) == (("customer", "id"), 1)
    assert declared(concurrency_key="id", key_concurrency=5).key_concurrency == 5
    assert declared(key_concurrency=5).concurrency_key == ()  # callers give the key
    assert declared(memory="1 MiB", memory_max="8 MiB").memory_max_bytes == 8 * MIB


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"rate": "fast"}, "rate is 'fast'", "100/s"),
        ({"rate": 5}, "rate is 5", "100/s"),
        ({"rate": "0/s"}, "rate is '0/s'", "one a day"),
        ({"rate": "5/d"}, "rate is '5/d'", "500/h"),
        ({"rate": "5/s:0"}, "rate is '5/s:0'", "burst"),
        ({"rate_burst": 5}, "rate_burst is 5", "rate="),
        ({"rate": "5/s:2", "rate_burst": 5}, "rate_burst is 5", "without one"),
        ({"rate": "5/s", "rate_burst": 0}, "rate_burst is 0", "1 to"),
        ({"concurrency_key": ""}, "concurrency_key is ''", "dotted path"),
        ({"concurrency_key": "a..b"}, "concurrency_key is 'a..b'", "dotted path"),
        ({"concurrency_key": 1}, "concurrency_key is 1", "dotted path"),
        ({"concurrency_key": "a", "key_concurrency": 0}, "key_concurrency is 0", "1 to"),
        ({"memory": "2 GiB", "memory_max": "1 GiB"}, "memory_max is '1 GiB'", "below memory"),
        ({"memory_max": "some"}, "memory_max", ""),
        ({"memory_max": 1000}, "memory_max is 1000", "1 MiB"),
        ({"concurency_key": "a"}, "no setting 'concurency_key'", "concurrency_key"),
    ],
)
def test_a_wrong_limit_is_refused_by_name(settings: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(InvalidFunction) as caught:
        declared(**settings)
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize("setting", [{"concurrency_key": "a"}, {"key_concurrency": 2}])
def test_a_job_has_no_key(setting: dict[str, Any]) -> None:
    app = App("shop")
    with pytest.raises(InvalidFunction, match="a job has no"):

        @app.job(split=Items(), **setting)
        def work(chunk: Any) -> None: ...


def test_what_a_claim_keeps_to_follows_from_the_settings() -> None:
    spec = declared(reserved_concurrency=3, rate="10/s:4", concurrency_key="a")
    assert limits_of(spec, shared=True) == Limits(3, 1, 10.0, 4.0)
    assert limits_of(spec, shared=False) == Limits(None, 1, 10.0, 4.0)
    assert limits_of(declared(), shared=True) == NO_LIMITS
    assert not limits_of(declared(reserved_concurrency=3), shared=False).any
