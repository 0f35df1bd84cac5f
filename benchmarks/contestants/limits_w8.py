"""W8 limits: waking a process that waits at a pipe, and the same behind an fsync, as what is durable must."""

import os
import struct

import benchlib as bl

_D = {"venv": "stdlib", "dist": "python", "workloads": ["w8"], "role": "limit", "rerun": "no"}
CONTESTANTS = {
    "pipe-wake": {**_D, "durable": "no"},
    "fsync-pipe-wake": {**_D, "durable": "yes: 1 KiB append + fdatasync before the wake-up"},
}


def w8(cfg):
    import w8lib

    there, here = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.close(there[1])
        while os.read(there[0], 1):
            os.write(here[1], struct.pack("d", w8lib.started(None)))
        os._exit(0)
    os.close(there[0])
    file = os.open(os.path.join(cfg.work, "log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def submit(i):
        if cfg.name == "fsync-pipe-wake":
            os.write(file, b"x" * 1024)
            os.fdatasync(file)
        os.write(there[1], b"1")
        return struct.unpack("d", os.read(here[0], 8))[0]

    out = w8lib.measure(cfg, submit)
    os.close(there[1])
    os.waitpid(pid, 0)
    return out


if __name__ == "__main__":
    bl.main(globals())
