"""The comparison of ways to serve a model runs, small: all ways give the same numbers, and every row is there."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks import serving, turns

pytestmark = pytest.mark.skipif(find_spec("tensorflow") is None, reason="tensorflow is not installed")


def test_all_ways_give_the_same_numbers() -> None:
    ways = serving.calls("recurrent", (12, 3), {"units": 4}, 2)
    found = [np.asarray(way()) for way in ways.values()]
    assert list(ways) == [serving.AGENT, serving.PREDICT, serving.COMPILED]
    assert [x.shape for x in found] == [(2, 3)] * 3
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, rtol=1e-5, atol=1e-6)


def test_ways_take_turns_and_rows_compare_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.cumsum([0.5] * 100_000))
    measure = partial(turns.measure, clock=lambda: float(next(clock)))
    seen: list[str] = []
    taken = measure({name: lambda name=name: seen.append(name) for name in "abc"}, 2, 0.3)  # type: ignore[misc]
    assert taken == {name: [0.5, 0.5] for name in "abc"}
    assert "".join(seen) == "aabbcc" + "aabbcc" + "bbccaa"
    monkeypatch.setattr(serving, "NETWORKS", (("tiny", "recurrent", (12, 3), {"units": 4}, 50.0),))
    monkeypatch.setattr(serving, "measure", measure)
    rows = serving.serving(1)
    assert [(row["batch"], row["way"]) for row in rows] == [
        (batch, way) for batch in (1, 16) for way in (serving.AGENT, serving.PREDICT, serving.COMPILED)
    ]
    assert [row["must_reach"] for row in rows] == [None, 50.0, None, None, None, None]
    assert {row["ms"] for row in rows} == {500.0, 500.0 / 16}
