"""W8: from a submit on an idle system to the first line of the function's code, in another process."""

import time

import benchlib as bl


def started(event):
    """The function: when its first line ran. CLOCK_MONOTONIC is one clock for all processes."""
    return time.monotonic()


def measure(cfg, submit):
    """`submit(i)` has one call run and returns what `started` gave; nothing else happens meanwhile."""
    for i in range(20):
        submit(i)
    begun, ended = [], []
    for i in range(cfg.n):
        time.sleep(cfg.idle_ms / 1e3)
        t = time.monotonic()
        at = submit(i)
        ended.append(time.monotonic() - t)
        bl.check(t < at < t + ended[-1], "it began before the submit, or after its result")
        begun.append(at - t)
    return {
        "ok": True,
        "n": cfg.n,
        **bl.summary_ms(begun),
        **{f"result_{key}": value for key, value in bl.summary_ms(ended).items()},
    }
