"""The network of the end-to-end comparisons: the zoo's `spectrogram_cnn`, untrained, since what a window costs does not depend on weights.

In: the default workload's shape. Out: `network.onnx` beside this file, which `python -m benchmarks.network` makes again.
"""

from __future__ import annotations

import numpy as np

from benchmarks.load import Workload
from benchmarks.rig import LABELS, NETWORK, recipe_text
from kymo.models.training.export import export_model
from kymo.models.zoo import architecture
from kymo.processors.recipe.load import parse_recipe


def make(work: Workload) -> bytes:
    fmt = parse_recipe(recipe_text("shape", work)).output_format()
    untrained = architecture("spectrogram_cnn")(fmt, LABELS, {}, seed=0)
    random = np.random.default_rng(0)
    some = random.standard_normal((16, work.channels, work.columns, work.bins)).astype(np.float32)
    return export_model(untrained, some.shape[1:], some).model


if __name__ == "__main__":
    NETWORK.write_bytes(make(Workload(2)))
