"""Functions for the soak: most succeed, some fail for good, some leak until their worker is replaced."""

import os
from typing import Any

from headrace import App, RetryPolicy

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
