"""Building a data set beside the usual loop. In: nothing (noise). Out: seconds by the clock and of the processor, memory in MB.

Sessions of 12 channels at 500 Hz, 120 s each, with labels. Kymo builds the data set that the trainer takes: windows by the chain
that runs live, labels, checksums; once kept in memory (``read_dataset``), once written and waited for until it is on the disk. The loop
calls ``scipy.signal.spectrogram`` for each window and channel, as most notebooks have it, and keeps float32: no labels, no checksums.
It is given float32, as Kymo is, and once float64, as pandas would give it; once it, too, writes its windows (one ``.npy``, each
window whole) and waits until they are on the disk. All begin with the recordings in memory. They take turns; a ratio is the median
of the ratios of rounds that lie side by side. Beside them: all of :func:`kymo.models.data.cache.build_dataset` from Parquet files, the
same again (a look-up), and what reading the files alone takes. Memory is that of a process of its own that builds a data set from the
files of one and of four times the sessions.
"""

# ruff: noqa: E402 (the number of threads is set before the libraries that read it are loaded)
from __future__ import annotations

import os
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import numpy as np
import scipy.signal

from benchmarks.child import memory as process_memory
from benchmarks.turns import Call, Seconds, medians, ratios, timed, turn
from kymo.models.data.cache import build_dataset, write_examples
from kymo.models.data.dataset import iter_examples, read_dataset
from kymo.models.data.examples import Dataset
from kymo.models.data.samples import split_chain
from kymo.processors.recipe.load import Recipe, parse_recipe
from kymo.streams.readers import read
from kymo.streams.recording import Recording
from kymo.streams.settings import Settings

CHANNELS, RATE_HZ, SECONDS = 12, 500, 120


@dataclass(frozen=True)
class Shape:
    """Windows of `length` samples, one every `hop`; columns of `nperseg` that share `noverlap`; `bins` of them kept."""

    length: int
    hop: int
    nperseg: int
    noverlap: int
    bins: int

    def recipe(self) -> Recipe:
        names = ", ".join(f'"c{i}"' for i in range(CHANNELS))
        return parse_recipe(
            f'name = "bench"\n[[input]]\nstream = "imu"\nrate_hz = {RATE_HZ}\nchannels = [{names}]\n'
            f'[[steps]]\nstep = "spectrogram"\nnperseg = {self.nperseg}\nnoverlap = {self.noverlap}\n'
            f"keep_bins = {self.bins}\n"
            f'[window]\nlength_s = "{self.length}/{RATE_HZ}"\nhop_s = "{self.hop}/{RATE_HZ}"\n'
        )

    def __str__(self) -> str:
        return f"{CHANNELS} x {self.length} hop {self.hop}, {self.nperseg}/{self.noverlap}, {self.bins} bins"


TITLES = {
    "kymo": "Kymo, in memory",
    "disk": "Kymo, onto the disk",
    "loop": "scipy, a window and channel at a time",
    "loop64": "the same in float64",
    "loop_disk": "the same in float32, onto the disk",
    "files": "Kymo, from files (build_dataset)",
    "again": "the same again (a look-up)",
    "reading": "reading the files alone",
}
#: Which figures are compared: the last is both onto the disk.
COMPARED = (("kymo", "loop"), ("kymo", "loop64"), ("disk", "loop"), ("disk", "loop64"), ("disk", "loop_disk"))
SHAPES = (Shape(1000, 480, 200, 160, 101), Shape(10_000, 5000, 1000, 800, 223))


def write_sessions(folder: Path, count: int) -> None:
    """Recordings of noise, one a Parquet file, two classes."""
    import pyarrow as pa
    from pyarrow import parquet

    samples = SECONDS * RATE_HZ
    for number in range(count):
        random = np.random.default_rng(number)
        columns: dict[str, Any] = {"t_ns": np.arange(samples, dtype=np.int64) * (10**9 // RATE_HZ)}
        columns |= {f"c{i}": random.standard_normal(samples, np.float32) for i in range(CHANNELS)}
        columns["label"] = pa.array([f"class {number % 2}"] * samples).dictionary_encode()
        parquet.write_table(pa.table(columns), folder / f"session{number:03d}.parquet")


def by_kymo(recipe: Recipe, data: Path, home: Path) -> Dataset:
    return build_dataset([data], recipe, split_chain(recipe.chain)[0], Settings(home=home))


def onto_disk(recipe: Recipe, recordings: list[Recording], home: Path) -> None:
    """A data set on the disk, from recordings that are in memory."""
    home.mkdir(exist_ok=True)
    about = Dataset()
    with ThreadPoolExecutor(1) as thread:
        write_examples(
            home, iter_examples(recordings, recipe, split_chain(recipe.chain)[0], about, thread), about, thread
        )


def by_loop(shape: Shape, recordings: list[Recording], dtype: type[Any] = np.float32) -> list[Any]:
    """The same windows, (time, bins, channels) float32, by scipy for each window and channel."""
    windows = []
    for recording in recordings:
        samples: Any = recording.streams[0].data.astype(dtype)
        for start in range(0, len(samples) - shape.length + 1, shape.hop):
            window = samples[start : start + shape.length]
            spectra = [
                scipy.signal.spectrogram(window[:, i], RATE_HZ, nperseg=shape.nperseg, noverlap=shape.noverlap)[2]
                for i in range(CHANNELS)
            ]
            windows.append(np.stack([s[: shape.bins].T for s in spectra], axis=-1).astype(np.float32))
    return windows


def loop_onto_disk(shape: Shape, recordings: list[Recording], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        np.save(file, np.stack(by_loop(shape, recordings)))
        file.flush()
        os.fsync(file.fileno())


def results(shape: Shape, data: Path, rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One shape: rows of seconds, and of ratios. A RuntimeError if the two do not give the same windows."""
    recipe, taken = shape.recipe(), list[dict[str, Seconds]]()
    recordings = list(read([data], recipe.read_options()))
    for number in range(rounds + 1):
        with tempfile.TemporaryDirectory(dir=data.parent) as folder:
            home = Path(folder)
            calls: dict[str, Call] = {
                "kymo": partial(read_dataset, recordings, recipe, split_chain(recipe.chain)[0]),
                "disk": partial(onto_disk, recipe, recordings, home / "memory"),
                "loop": partial(by_loop, shape, recordings),
                "loop64": partial(by_loop, shape, recordings, np.float64),
                "loop_disk": partial(loop_onto_disk, shape, recordings, home / "loop" / "windows.npy"),
            }
            others: dict[str, Call] = {
                "files": partial(by_kymo, recipe, data, home),
                "again": partial(by_kymo, recipe, data, home),
                "reading": lambda: sum(1 for _ in read([data], recipe.read_options())),
            }
            found = {name: timed(call) for name, call in (*turn(calls, number), *others.items())}
            count = compare(found["files"][1], found["loop"][1])
            if number:  # the first round warms up
                taken.append({name: seconds for name, (seconds, _) in found.items()})
    kind = {"shape": str(shape), "windows": count}
    rows = [kind | {"peer": title} | medians(taken, name) for name, title in TITLES.items()]
    pairs = [{"peer": TITLES[ours], "than": TITLES[loop]} | ratios(taken, ours, loop) for ours, loop in COMPARED]
    return rows, [kind | pair for pair in pairs]


def compare(found: Dataset, right: list[Any]) -> int:
    """How many windows there are; every seventh is compared number by number."""
    if len(found.examples) != len(right):
        raise RuntimeError(f"Kymo has {len(found.examples)} windows, the loop {len(right)}")
    for example, window in list(zip(found.examples, right, strict=True))[::7]:
        if np.abs(example.window.data - window).max() > 2e-5 * np.abs(window).max():
            raise RuntimeError(f"session {example.session} at {example.window.start_index}: other numbers")
    return len(right)


def memory(data: Path, sessions: int) -> list[dict[str, float]]:
    """Peaks, each of a process of its own, with one and with four times the data."""
    rows = []
    for count in (sessions, 4 * sessions):
        with tempfile.TemporaryDirectory(dir=data.parent) as home, ProcessPoolExecutor(1, get_context("spawn")) as pool:
            windows, peak_mb = pool.submit(_built, sorted(data.iterdir())[:count], Path(home)).result()
            size = sum(file.stat().st_size for file in Path(home).rglob("*") if file.is_file())
        rows.append({"sessions": count, "windows": windows, "peak_mb": peak_mb, "entry_mb": size / 1e6})
    return rows


def _built(paths: list[Path], home: Path) -> tuple[int, float]:
    """Windows of a data set that is built from files, and the most resident memory of this process, MB."""
    recipe = SHAPES[1].recipe()
    dataset = build_dataset(paths, recipe, split_chain(recipe.chain)[0], Settings(home=home))
    return len(dataset.examples), process_memory(os.getpid()).peak_mb


def dataset(rounds: int, sessions: int = 8, shapes: tuple[Shape, ...] = SHAPES) -> dict[str, list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        data, more = Path(folder) / "data", Path(folder) / "more"
        for path, count in ((data, sessions), (more, 4 * sessions)):
            path.mkdir()
            write_sessions(path, count)
        built = [results(shape, data, rounds) for shape in shapes]
        rows, pairs = ([row for each in side for row in each] for side in zip(*built, strict=True))
        return {"dataset": rows, "dataset_ratios": pairs, "dataset_memory": memory(more, sessions)}
