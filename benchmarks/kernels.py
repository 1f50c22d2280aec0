"""Windows per second of the spectrogram step and of its peers. In: nothing (noise). Out: a table, and JSON if a path is given.

    python -m benchmarks.kernels [--out FILE] [--rounds N]

Everything runs in one process on one thread, by turns, in the time that the thread itself spent (so that a busy machine does not choose the
winner); a figure is the median of its rounds, a ratio the median of the ratios of rounds that lie side by side. "Kymo" is the whole step:
samples copied in, new columns computed, and the window assembled. The peers compute every column of a window anew, as they must. The limit
is the bare ``scipy.fft.rfft`` of a hop's new frames, already cut out and windowed.
"""

# ruff: noqa: E402 (the number of threads is set before the libraries that read it are loaded)
from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"  # read when the libraries are loaded, so before they are

import numpy as np
import scipy.fft
import scipy.signal
from rich.console import Console
from rich.table import Table

from kymo.processors.steps.spectrogram import Spectrogram
from kymo.processors.windows import Windows
from kymo.streams.chunk import Chunk, Header, signal_format

Call = Callable[[], Any]
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
        """Samples from one frame to the next."""
        return self.nperseg - self.noverlap

    @property
    def new_frames(self) -> int:
        """Frames that a hop adds."""
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


def measure(calls: dict[str, Call], rounds: int, seconds: float = 0.02) -> dict[str, list[float]]:
    """Seconds a call by name, one figure a round; the calls take turns, and each round starts with another one."""
    counts = {}
    for name, call in calls.items():
        call()
        start = thread_time()
        call()
        counts[name] = max(1, round(seconds / max(thread_time() - start, 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            call, count = calls[name], counts[name]
            call()  # the one before has left the caches full of its own
            start = thread_time()
            for _ in range(count):
                call()
            taken[name].append((thread_time() - start) / count)
    return taken


def results(shape: Shape, dtype: str, rounds: int) -> dict[str, Any]:
    """One shape and dtype: windows per second and ratios by name."""
    others, absent = other_calls(shape, dtype)
    ours = {OURS: kymo(shape, dtype, shape.hop), "Kymo, chunks of 100 samples": kymo(shape, dtype, 100)}
    taken = measure(ours | scipy_calls(shape, dtype) | others, rounds)
    rows = {
        name: {
            "windows_per_s": 1 / median(times),
            "of_limit": median(a / b for a, b in zip(taken[LIMIT], times, strict=True)),
            "kymo_is_faster_by": median(a / b for a, b in zip(times, taken[OURS], strict=True)),
        }
        for name, times in taken.items()
    }
    return {"shape": str(shape), "dtype": dtype, "rounds": rounds, "absent": absent, "rows": rows}


def show(result: dict[str, Any], console: Console) -> None:
    """Print one table."""
    table = Table(title=f"{result['shape']}, {result['dtype']}", title_justify="left")
    for column in ("", "windows/s", "of the limit", "Kymo is faster by"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, row in result["rows"].items():
        faster = "" if name == OURS else f"{row['kymo_is_faster_by']:.1f} x"
        table.add_row(name, f"{row['windows_per_s']:,.0f}", f"{row['of_limit']:.2f}", faster)
    console.print(table)
    for name in result["absent"]:
        console.print(f"{name} is not installed here, so it was not measured")


def main() -> None:
    """Measure all shapes and dtypes."""
    parser = argparse.ArgumentParser(description="Windows per second of the spectrogram step and of its peers.")
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--rounds", type=int, default=60, help="rounds by turns (default %(default)s)")
    chosen = parser.parse_args()
    if chosen.rounds < 1:
        parser.error("--rounds: expected at least 1")
    console, all_results = Console(width=100), []
    for shape in SHAPES:
        for dtype in ("float32", "float64"):
            all_results.append(results(shape, dtype, chosen.rounds))
            show(all_results[-1], console)
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(all_results, indent=1) + "\n")


if __name__ == "__main__":
    main()
