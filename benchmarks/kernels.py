"""Windows per second of the spectrogram step and of its peers. In: nothing (noise). Out: a row a shape, dtype and peer.

Everything runs in one process on one thread, by turns, in the time that the thread itself spent (so that a busy machine does not choose the
winner); a figure is the median of its rounds, a ratio the median of the ratios of rounds that lie side by side. "Kymo" is the whole step:
samples copied in, new columns computed, and the window assembled. The peers compute every column of a window anew, as they must. The limit
is the bare ``scipy.fft.rfft`` of a hop's new frames, already cut out and windowed.
"""

# ruff: noqa: E402 (the number of threads is set before the libraries that read it are loaded)
from __future__ import annotations

import os
from dataclasses import dataclass
from statistics import median
from time import thread_time
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"  # read when the libraries are loaded, so before they are

import numpy as np
import scipy.fft
import scipy.signal

from benchmarks.turns import Call, faster, measure
from kymo.processors.steps.spectrogram import Spectrogram
from kymo.processors.windows import Windows
from kymo.streams.chunk import Chunk, Header, signal_format

RATE_HZ = 500
LIMIT = "bare rfft of the new frames"
OURS = "Kymo, a chunk a hop"


@dataclass(frozen=True)
class Shape:
    """Windows of `length` samples of `channels`, one every `hop`; frames of `nperseg` that share `noverlap`."""

    channels: int
    length: int
    hop: int
    nperseg: int
    noverlap: int

    @property
    def step(self) -> int:
        return self.nperseg - self.noverlap

    @property
    def new_frames(self) -> int:
        return self.hop // self.step

    def __str__(self) -> str:
        return f"{self.channels}x{self.length} hop {self.hop}, {self.nperseg}/{self.noverlap}"


SHAPES = (Shape(12, 1000, 480, 200, 160), Shape(12, 10_000, 5000, 1000, 800))


def kymo(shape: Shape, dtype: str, chunk: int) -> Call:
    """Our whole step: each call takes one hop of samples, in chunks of at most `chunk`, and gives one window."""
    rows = (shape.length - shape.nperseg) // shape.step + 1
    spec = Spectrogram(
        nperseg=shape.nperseg,
        noverlap=shape.noverlap,
        chunk_frames=shape.new_frames,
        chunk_phase=rows % shape.new_frames,
    )
    frames, windows = spec.build(), Windows(shape.length, shape.hop).build()
    header = Header("s", 0, signal_format("imu", tuple(f"c{i}" for i in range(shape.channels)), RATE_HZ, dtype))
    hops = np.random.default_rng(0).standard_normal((16, shape.hop, shape.channels)).astype(dtype)
    at = 0

    def call() -> Any:
        nonlocal at
        out = None
        samples = hops[at // shape.hop % len(hops)]
        for start in range(0, shape.hop, chunk):
            piece = samples[start : start + chunk]
            for columns in frames.push(Chunk(header, at + start, piece)):
                out = windows.push(columns)
        at += shape.hop
        return out

    while not call():
        pass  # until the first window is full
    return call


def scipy_calls(shape: Shape, dtype: str) -> dict[str, Call]:
    """What scipy offers, and the limit."""
    window = np.random.default_rng(0).standard_normal((shape.channels, shape.length)).astype(dtype)
    options: dict[str, Any] = {"nperseg": shape.nperseg, "noverlap": shape.noverlap}
    taper = scipy.signal.get_window(("tukey", 0.25), shape.nperseg)
    short = scipy.signal.ShortTimeFFT(taper, shape.step, RATE_HZ, scale_to="psd")
    first, last = short.lower_border_end[1], short.upper_border_begin(shape.length)[1]
    frames = np.random.default_rng(1).standard_normal((shape.channels, shape.new_frames, shape.nperseg)).astype(dtype)
    return {
        "scipy.signal.spectrogram, per channel": lambda: [
            scipy.signal.spectrogram(channel, RATE_HZ, **options) for channel in window
        ],
        "scipy.signal.spectrogram, batched": lambda: scipy.signal.spectrogram(window, RATE_HZ, **options),
        "scipy.signal.ShortTimeFFT, batched": lambda: short.spectrogram(window, detr="constant", p0=first, p1=last),
        LIMIT: lambda: scipy.fft.rfft(frames),
    }


def other_calls(shape: Shape, dtype: str) -> tuple[dict[str, Call], list[str]]:
    """librosa and torch where they are installed (power only: neither detrends), and the names of those that are not."""
    window = np.random.default_rng(0).standard_normal((shape.channels, shape.length)).astype(dtype)
    calls: dict[str, Call] = {}
    absent: list[str] = []
    taper = scipy.signal.get_window(("tukey", 0.25), shape.nperseg).astype(dtype)
    try:
        import librosa

        def by_librosa() -> Any:
            spectrum = librosa.stft(window, n_fft=shape.nperseg, hop_length=shape.step, window=taper, center=False)
            return np.abs(spectrum) ** 2

        by_librosa()
        calls["librosa.stft, batched"] = by_librosa
    except ImportError:
        absent.append("librosa")
    try:
        import torch

        torch.set_num_threads(1)
        tensor, torch_taper = torch.from_numpy(window), torch.from_numpy(taper)

        def by_torch() -> Any:
            spectrum = torch.stft(
                tensor, shape.nperseg, shape.step, window=torch_taper, center=False, return_complex=True
            )
            return spectrum.abs().square()

        calls["torch.stft, batched"] = by_torch
    except ImportError:
        absent.append("torch")
    return calls, absent


def kernels(rounds: int) -> list[dict[str, Any]]:
    """A row for each shape, dtype and peer; one that is not installed has no figures."""
    rows = []
    for shape in SHAPES:
        for dtype in ("float32", "float64"):
            others, absent = other_calls(shape, dtype)
            ours = {OURS: kymo(shape, dtype, shape.hop), "Kymo, chunks of 100 samples": kymo(shape, dtype, 100)}
            taken = measure(ours | scipy_calls(shape, dtype) | others, rounds, 0.02, thread_time)
            kind = {"shape": str(shape), "dtype": dtype}
            rows += [
                kind
                | {
                    "peer": name,
                    "windows_per_s": 1 / median(times),
                    "of_limit": faster(times, taken[LIMIT]),
                    "kymo_is_faster_by": faster(taken[OURS], times),
                }
                for name, times in taken.items()
            ]
            rows += [kind | {"peer": f"{name} is not installed here"} for name in absent]
    return rows
