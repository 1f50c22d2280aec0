"""What a peer process is told, and what all peers share. In: a Task as JSON in `argv`. Out: events on its target topic.

Every peer reads the same samples, runs the same network and publishes an event a window with the members session, start_index, label
and probabilities; how it gets there is its own.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import spectrogram

from benchmarks.load import Workload
from benchmarks.rig import LABELS, NETWORK
from kymo.deploy.children import Child, kymo_environment

#: glibc gives the memory of every large array back to the system, and fetches it again page by page: without these two the bare loop
#: has half its rate. Whoever writes it for speed finds that out.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31)}


@dataclass(frozen=True, slots=True)
class Task:
    brokers: str
    group: str  # a new one
    source: str  # topics
    target: str
    folder: str  # for its state
    work: Workload

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_argv(cls) -> Task:
        fields = json.loads(sys.argv.pop())
        return cls(**fields | {"work": Workload(**fields["work"])})


def peer_child(name: str, task: Task) -> Child:
    """The process of ``benchmarks/peer_NAME.py``, not yet started."""
    command = [sys.executable, "-m", f"benchmarks.peer_{name}", task.to_json()]
    return Child(name, command, kymo_environment(_ALLOCATOR if name == "bare" else {}))


@cache
def network() -> Any:
    """The network as a function of ``(n, channels, time, bins)`` float32; one thread, as Kymo runs it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(NETWORK), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"windows": batch})[0]


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(weights / weights.sum())


def event(session: str, start_index: int, logits: NDArray[np.float32]) -> dict[str, Any]:
    probabilities = softmax(logits).tolist()
    best = int(np.argmax(logits))
    named = dict(zip(LABELS, probabilities, strict=True))
    return {
        "session": session,
        "start_index": start_index,
        "label": LABELS[best],
        "probability": probabilities[best],
        "probabilities": named,
    }


def by_channel(work: Workload, window: NDArray[Any]) -> NDArray[np.float32]:
    """Network input of one window ``(time, channels)``, a channel at a time, as tutorials do: ``(1, channels, time, bins)``."""
    spectra = []
    for channel in range(window.shape[1]):
        _, _, power = spectrogram(window[:, channel], work.rate_hz, nperseg=work.nperseg, noverlap=work.noverlap)
        spectra.append(np.log(power + work.eps).T)
    return np.stack(spectra)[None].astype(np.float32)


def batched(work: Workload, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Network input of windows ``(..., time, channels)``, all channels in one call: ``(..., channels, time, bins)``."""
    _, _, power = spectrogram(
        np.ascontiguousarray(np.swapaxes(windows, -1, -2)), work.rate_hz, nperseg=work.nperseg, noverlap=work.noverlap
    )
    # What scipy returns is every second float of a complex array: a copy first makes the logarithm several times quicker.
    power = np.ascontiguousarray(np.swapaxes(power, -1, -2))
    power += np.float32(work.eps)
    return np.asarray(np.log(power, out=power))
