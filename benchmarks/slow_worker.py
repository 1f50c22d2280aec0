"""``kymo`` with one step more, which takes its time: ``python -m benchmarks.slow_worker worker RECIPE …``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from kymo import main
from kymo.processors.registry import STEPS
from kymo.processors.spec import SlowSpec, only
from kymo.streams.chunk import Array, Format


@dataclass(frozen=True)
class Colours(SlowSpec):
    """The mean of each colour of a frame, after a while."""

    wait_s: float = 0.0  # how long it waits, and computes
    compute_s: float = 0.0
    name: ClassVar[str] = "colours"

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """A number a colour."""
        fmt = only(inputs)
        return replace(fmt, stream="pose", dtype="float32", shape=fmt.shape[-1:])

    def apply(self, data: Array, fmt: Format) -> Array:
        """``(n, height, width, colours)`` to ``(n, colours)``."""
        for _ in data:
            time.sleep(self.wait_s)
            until = time.thread_time() + self.compute_s
            while time.thread_time() < until:
                pass
        means: Array = data.mean((1, 2), "float32")
        return means


if __name__ == "__main__":
    from benchmarks.slow_worker import Colours as Importable

    STEPS[Importable.name] = Importable
    main()
