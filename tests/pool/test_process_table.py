"""The processes below a process, by what the kernel tells of one and by a look at all."""

import os
import signal
import subprocess
import sys

import pytest

from headrace.runtime.pool import process

pytestmark = pytest.mark.skipif(not process.LINUX, reason="needs Linux: only its /proc tells")

# A child from a thread that is not the first, and a grandchild; it prints the grandchild's number and waits.
TREE = """
import os, subprocess, sys, threading
def start():
    inner = "import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    subprocess.Popen([sys.executable, "-c", inner])
thread = threading.Thread(target=start)
thread.start(); thread.join()
sys.stdin.read()
"""


@pytest.mark.parametrize("asks_kernel", [True, False])
def test_all_below_a_process_are_found_whichever_thread_started_them(asks_kernel: bool) -> None:
    if asks_kernel and not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        pytest.skip("this kernel was built without CONFIG_PROC_CHILDREN")
    table = process.ProcessTable(asks_kernel=asks_kernel)
    with subprocess.Popen(
        [sys.executable, "-c", TREE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as tree:
        try:
            assert tree.stdout is not None
            grandchild = int(tree.stdout.readline())
            table.refresh()

            found = table.descendants(tree.pid)

            assert len(found) == 2
            assert found[1] == grandchild
        finally:
            os.killpg(tree.pid, signal.SIGKILL)


def test_a_process_that_is_gone_has_none_below_it() -> None:
    with subprocess.Popen(["true"]) as gone:
        pass

    table = process.ProcessTable()
    table.refresh()

    assert table.descendants(gone.pid) == []
