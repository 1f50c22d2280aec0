"""A monotonic clock that stood still while its machine slept. In: on PYTHONPATH, with ``KYMO_TEST_SLEPT``, a file. Out: a later clock.

The file holds 8 bytes, a little-endian double: the seconds slept so far, by which the clock is behind. Whoever stops a process (SIGSTOP)
and lets it go on adds the length of its stop just before, as a laptop's lid would. uvloop asks the kernel's own clock, which cannot be
changed from here: the process runs on asyncio's loop instead.
"""

import asyncio
import mmap
import os
import struct
import sys
import time
import types


def _install(path: str) -> None:
    with open(path, "rb") as file:
        slept = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)

    def behind(real, seconds_of):
        return lambda: real() - seconds_of(struct.unpack("<d", slept)[0])

    for name in ("monotonic", "perf_counter"):
        setattr(time, name, behind(getattr(time, name), float))
        setattr(time, f"{name}_ns", behind(getattr(time, f"{name}_ns"), lambda seconds: int(seconds * 1e9)))
    uvloop = types.ModuleType("uvloop")
    uvloop.EventLoopPolicy = asyncio.DefaultEventLoopPolicy
    uvloop.new_event_loop = asyncio.new_event_loop
    uvloop.install = lambda: None
    uvloop.run = asyncio.run
    sys.modules["uvloop"] = uvloop


if "KYMO_TEST_SLEPT" in os.environ:
    _install(os.environ["KYMO_TEST_SLEPT"])
