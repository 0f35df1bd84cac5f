"""Metrics for Prometheus, read from the books when they are asked for.

Imports this room and prometheus-client.
"""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from headrace.runtime.api.services import Services
from headrace.runtime.api.v1 import Api

_COUNTERS = {
    "accepted": "Invocations accepted.",
    "succeeded": "Invocations that succeeded.",
    "dead": "Invocations that rest in the dead-letter queue, or rested there.",
    "cancelled": "Invocations that were cancelled.",
    "deduplicated": "Repeats that an idempotency key dropped.",
    "throttled": "Calls refused because too much was waiting.",
}
_GAUGES = {
    "waiting": "Invocations that wait.",
    "running": "Invocations that run.",
    "oldest_waiting_s": "Age of the oldest waiting invocation, in seconds.",
}


class _Collector:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


async def metrics(services: Services, api: Api) -> tuple[bytes, str]:
    """The exposition text and its content type."""
    books = await api.functions.books()
    families: list[Metric] = []
    for key, text in _COUNTERS.items():
        counter = CounterMetricFamily(f"headrace_invocations_{key}", text, labels=["function"])
        for name, entry in books["functions"].items():
            counter.add_metric([name], entry[key])
        families.append(counter)
    for key, text in _GAUGES.items():
        unit = key.replace("_s", "_seconds") if key.endswith("_s") else key
        gauge = GaugeMetricFamily(f"headrace_invocations_{unit}", text, labels=["function"])
        for name, entry in books["functions"].items():
            gauge.add_metric([name], entry[key])
        families.append(gauge)
    removed = CounterMetricFamily(
        "headrace_invocations_removed",
        "Ended invocations whose rows retention or a new plan has removed.",
        labels=["function", "status"],
    )
    for name, entry in books["functions"].items():
        for status, count in entry["removed"].items():
            removed.add_metric([name, status], count)
    families.append(removed)
    verdict = api.verifier.last
    if verdict is not None:
        for name, text, value in (
            ("balanced", "1 if the last verification of all found no problem, else 0.", verdict.balanced),
            ("checked_timestamp_seconds", "When that verification began.", verdict.at),
            ("checked_rows", "How many rows it read.", verdict.audit.checked_rows),
            ("problems", "How many problems it found.", sum(verdict.found.values())),
        ):
            families.append(GaugeMetricFamily(f"headrace_books_{name}", text, value=float(value)))
    sync = CounterMetricFamily(
        "headrace_sync_calls", "Synchronous calls by how they ended.", labels=["function", "outcome"]
    )
    for name, entry in books["functions"].items():
        for outcome in ("succeeded", "failed", "throttled"):
            sync.add_metric([name, outcome], entry["sync"][outcome])
    families.append(sync)
    for name, value in services.health().items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            families.append(GaugeMetricFamily(f"headrace_node_{name}", f"The node's {name}.", value=value))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(families))
    return generate_latest(registry), CONTENT_TYPE_LATEST
