"""Functions for the soak: most succeed, some fail for good, some leak until their worker is replaced."""

import os
from typing import Any

from headrace import App, RetryPolicy, Schedule

app = App("soak")
leaked: list[bytes] = []


@app.function(retries=RetryPolicy(retries=8, base_s=0.01, max_s=0.1), on_failure="soak.heard")
def mixed(n: int) -> int:
    print(f"item {n}")
    if n % 50 == 0:
        raise ValueError("a bad item")
    if n % 7 == 0:
        leaked.append(os.urandom(64 << 10))
    return n


@app.function
def heard(event: Any) -> None: ...


@app.function(retries=8, idempotency_ttl="1 s")
def once(n: int) -> int:
    return n


@app.function(retries=8, rate="200/s", reserved_concurrency=2)
def limited(n: int) -> int:
    return n


@app.on(Schedule("rate(1 second)"))
@app.function(retries=8)
def tick(event: Any) -> None: ...
