"""Champions whose windows are of another kind than the last one's take over under a running worker: no window lost, none twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fault_feed import RECIPE
from fault_lab import Feed, kill, stop_worker
from swap_lab import SwapLab
from tiny_models import manifest

from kymo.models.bundle import promote, raw_chain
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.processors.recipe.load import load_recipe

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]
#: Eight samples a column, every eight: the window of spectra is whole when the one of samples is.
SPECTRA = RECIPE.replace('step = "scale"\nfactor = 0.5', 'step = "spectrogram"\nnperseg = 8\nnoverlap = 0')


class KindsLab(SwapLab):
    """A lab with a bundle for the recipe's spectra, and one for raw windows."""

    def __init__(self, folder: Path, brokers: str, prefix: str) -> None:
        super().__init__(folder, brokers, prefix)
        text = "\n".join(line for line in SPECTRA.splitlines() if not line.startswith("pool"))
        self.recipe.write_text(text.replace('[[window.steps]]\nstep = "standardise"\n', ""))
        loaded = load_recipe(self.recipe)
        ids = []
        for raw in (False, True):
            shape = [16, 2] if raw else [2, 5, 2]
            chain = (raw_chain(loaded.chain) if raw else loaded.chain).to_json()
            model = {"input": "windows", "output": "logits", "shape": shape, "dtype": "float32"}
            model |= {"layout": "channels_last"} | ({"takes": "raw"} if raw else {})
            described = manifest(recipe="lab", chain=chain, model=model)
            onnx = pooled_onnx(raw)
            ids.append(f"lab@{write_bundle(None, described, {MODEL: onnx}, self.settings.home, promote=False).name}")
        self.versions, self.promoted = ids, [ids[0]]
        promote(ids[0], home=self.settings.home)


def pooled_onnx(raw: bool) -> bytes:
    """Logits of the mean over time (and bins) of each channel."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.array([[-4.0, 0.0, 4.0], [1.0, -2.0, 1.0]], np.float32)
    axes = np.array([1] if raw else [1, 2])
    nodes = [
        helper.make_node("ReduceMean", ["windows", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
    ]
    shape = ["n", 16, 2] if raw else ["n", 2, 5, 2]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("windows", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(axes, "axes"), numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


@pytest.fixture
def lab(tmp_path: Path, broker: str, prefix: str) -> KindsLab:
    """Topics and a registry of its own on the session's broker."""
    return KindsLab(tmp_path, broker, prefix)


def test_from_spectra_to_samples_and_back_while_the_stream_goes_on(lab: KindsLab) -> None:
    with lab:
        feed, worker = Feed(lab, 41, rate=150), lab.start_worker()
        feed.start()
        lab.until_served_by(lab.versions[0])
        for number in (1, 0, 1):
            lab.promote(lab.versions[number])
            lab.until_served_by(lab.versions[number])
        kill(worker)
        lab.promote(lab.versions[0])  # while no worker runs: the next one finds sessions of the other kind
        worker = lab.start_worker()
        lab.until_served_by(lab.versions[0])
        events = lab.check_swaps(feed)
        stop_worker(worker)
        assert "refused" not in lab.said()
    served = {bundle: sum(event["bundle"] == bundle for event in events) for bundle in lab.versions}
    print(f"\n{len(events)} events over 4 exchanges of kind and a kill, each once: {served}")
