"""Windows of raw samples. In: a recipe's chain. Out: the same chain, cut back to its intake and its window.

An architecture that finds its features by itself (``takes = "raw"``, such as ``minirocket``) skips the recipe's steps.
Its bundle says so (``"takes": "raw"`` in the manifest's model section) and carries the recipe's chain cut back: the
same intake, the same window grid, hence the same event ids. A bundle of such a model fits every recipe whose cut chain
is its own. What differs: a window of samples is whole once all its samples are there, one of spectrogram columns as
soon as its last column is; at a recording's end, or before a gap, there may be one window fewer.

In a worker the model agent of a raw bundle reads the sensor's own topic, whether or not a processor runs beside it.
"""

from __future__ import annotations

from processors.chain import Chain
from processors.intake import Intake
from processors.windows import Windows


def raw_chain(chain: Chain) -> Chain:
    """The intake and the window of a chain, without any step."""
    return Chain(tuple(spec for spec in chain.specs if isinstance(spec, Intake | Windows)))
