"""Building a data set beside the usual loop. In: nothing (noise). Out: seconds by the clock and of the processor, memory in MB.

Sessions of 12 channels at 500 Hz, 120 s each, with labels. Kymo builds the data set that the trainer takes: windows by the chain
that runs live, labels, checksums; once kept in memory (``read_dataset``), once written and waited for until it is on the disk. The loop
calls ``scipy.signal.spectrogram`` for each window and channel, as most notebooks have it, and keeps float32: no labels, no checksums.
It is given float32, as Kymo is, and once float64, as pandas would give it; once it, too, writes its windows (one ``.npy``, each
window whole) and waits until they are on the disk. All begin with the recordings in memory. They take turns; a ratio is the median
of the ratios of rounds that lie side by side. Beside them: all of :func:`kymo.models.data.cache.build_dataset` from Parquet files, the
same again (a look-up), and what reading the files alone takes. Memory is that of a process of its own that builds a data set from the
files of one and of four times the sessions.

    python -m benchmarks.dataset [--rounds N] [--sessions N]
"""

# ruff: noqa: E402 (the number of threads is set before the libraries that read it are loaded)
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import numpy as np
import scipy.signal
from rich.console import Console
from rich.table import Table

from kymo.models.data.cache import build_dataset, write_examples
from kymo.models.data.dataset import iter_examples, read_dataset
from kymo.models.data.examples import Dataset
from kymo.models.data.samples import split_chain
from kymo.processors.recipe.load import Recipe, parse_recipe
from kymo.streams.readers import read
from kymo.streams.recording import Recording
from kymo.streams.settings import Settings

CHANNELS, RATE_HZ, SECONDS = 12, 500, 120
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Shape:
    """Windows of `length` samples, one every `hop`; columns of `nperseg` that share `noverlap`; `bins` of them kept."""

    length: int
    hop: int
    nperseg: int
    noverlap: int
    bins: int

    def recipe(self) -> Recipe:
        """The recipe that asks for them."""
        names = ", ".join(f'"c{i}"' for i in range(CHANNELS))
        return parse_recipe(
            f'name = "bench"\n[[input]]\nstream = "imu"\nrate_hz = {RATE_HZ}\nchannels = [{names}]\n'
            f'[[steps]]\nstep = "spectrogram"\nnperseg = {self.nperseg}\nnoverlap = {self.noverlap}\n'
            f"keep_bins = {self.bins}\n"
            f'[window]\nlength_s = "{self.length}/{RATE_HZ}"\nhop_s = "{self.hop}/{RATE_HZ}"\n'
        )

    def __str__(self) -> str:
        return f"{CHANNELS} x {self.length} hop {self.hop}, {self.nperseg}/{self.noverlap}, {self.bins} bins"


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
    """A data set in a cache that is empty."""
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
    """The loop's windows in a file."""
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        np.save(file, np.stack(by_loop(shape, recordings)))
        file.flush()
        os.fsync(file.fileno())


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds by the clock, seconds of the processor, and what came of it."""
    clock, processor = perf_counter(), process_time()
    out = call()
    return perf_counter() - clock, process_time() - processor, out


def results(shape: Shape, data: Path, rounds: int) -> dict[str, Any]:
    """One shape: seconds and ratios.

    Raises
    ------
    RuntimeError
        If the two do not give the same windows.
    """
    recipe, taken = shape.recipe(), []
    recordings = list(read([data], recipe.read_options()))
    for number in range(rounds + 1):
        with tempfile.TemporaryDirectory(dir=data.parent) as folder:
            home = Path(folder)
            calls: dict[str, Callable[[], Any]] = {
                "kymo": partial(read_dataset, recordings, recipe, split_chain(recipe.chain)[0]),
                "disk": partial(onto_disk, recipe, recordings, home / "memory"),
                "loop": partial(by_loop, shape, recordings),
                "loop64": partial(by_loop, shape, recordings, np.float64),
                "loop_disk": partial(loop_onto_disk, shape, recordings, home / "loop" / "windows.npy"),
            }
            names = list(calls)[:: -1 if number % 2 else 1]
            others: dict[str, Callable[[], Any]] = {
                "files": partial(by_kymo, recipe, data, home),
                "again": partial(by_kymo, recipe, data, home),
                "reading": lambda: sum(1 for _ in read([data], recipe.read_options())),
            }
            found = {name: timed((calls | others)[name]) for name in (*names, *others)}
            count = compare(found["files"][2], found["loop"][2])
            if number:  # the first round warms up
                taken.append({name: times[:2] for name, times in found.items()})
    seconds = {
        name: {kind: median(t[name][i] for t in taken) for i, kind in enumerate(("clock_s", "cpu_s"))}
        for name in taken[0]
    }
    ratios = {
        f"{ours} against {loop}": [median(t[loop][i] / t[ours][i] for t in taken) for i in range(2)]
        for ours, loop in COMPARED
    }
    return {"shape": str(shape), "windows": count, "rounds": rounds, "seconds": seconds, "kymo_is_faster_by": ratios}


def compare(found: Dataset, right: list[Any]) -> int:
    """How many windows there are; every seventh is compared number by number."""
    if len(found.examples) != len(right):
        raise RuntimeError(f"Kymo has {len(found.examples)} windows, the loop {len(right)}")
    for example, window in list(zip(found.examples, right, strict=True))[::7]:
        if np.abs(example.window.data - window).max() > 2e-5 * np.abs(window).max():
            raise RuntimeError(f"session {example.session} at {example.window.start_index}: other numbers")
    return len(right)


def peak_mb(data: Path, home: Path, sessions: int, shape: int) -> dict[str, float]:
    """Most resident memory of a process that builds a data set of the first sessions, MB, and the size of its entry, MB."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom benchmarks import dataset as d\n"
        "from kymo.models.data.samples import split_chain\nfrom kymo.models.data.cache import build_dataset\n"
        "from kymo.streams.settings import Settings\n"
        "data, home, count, shape = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])\n"
        "recipe = d.SHAPES[shape].recipe()\n"
        "paths = sorted(data.iterdir())[:count]\n"
        "found = build_dataset(paths, recipe, split_chain(recipe.chain)[0], Settings(home=home))\n"
        # Not getrusage: its peak is handed down from the process that started this one.
        "status = Path('/proc/self/status').read_text().split()\n"
        "print(int(status[status.index('VmHWM:') + 1]) * 1024 / 1e6, len(found.examples))\n"
    )
    words = [sys.executable, "-c", code, str(data), str(home), str(sessions), str(shape)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    peak, windows = done.stdout.split()
    size = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
    return {"sessions": sessions, "windows": int(windows), "peak_mb": float(peak), "entry_mb": size / 1e6}


def memory(data: Path, sessions: int) -> list[dict[str, float]]:
    """Peaks with one and with four times the data."""
    found = []
    for count in (sessions, 4 * sessions):
        with tempfile.TemporaryDirectory(dir=data.parent) as home:
            found.append(peak_mb(data, Path(home), count, 1))
    return found


def dataset(rounds: int, sessions: int = 8, shapes: tuple[Shape, ...] = SHAPES) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        data, more = Path(folder) / "data", Path(folder) / "more"
        for path, count in ((data, sessions), (more, 4 * sessions)):
            path.mkdir()
            write_sessions(path, count)
        return {"build": [results(shape, data, rounds) for shape in shapes], "memory": memory(more, sessions)}


def show(found: dict[str, Any], console: Console) -> None:
    """Print both tables."""
    names = {
        "kymo": "Kymo, in memory",
        "disk": "Kymo, onto the disk",
        "loop": "scipy, a window and channel at a time",
        "loop64": "the same in float64",
        "loop_disk": "the same in float32, onto the disk",
        "files": "Kymo, from files (build_dataset)",
        "again": "the same again (a look-up)",
        "reading": "reading the files alone",
    }
    for made in found["build"]:
        ratios = made["kymo_is_faster_by"]
        table = Table("", "s", "s of the processor", title=f"{made['shape']}: {made['windows']} windows")
        for name, title in names.items():
            times = made["seconds"][name]
            table.add_row(title, f"{times['clock_s']:.2f}", f"{times['cpu_s']:.2f}")
        console.print(table)
        for name, (clock, processor) in ratios.items():
            ours, loop = name.split(" against ")
            console.print(
                f"{names[ours]}: {clock:.1f} x ({processor:.1f} x of the processor) faster than {names[loop]}"
            )
    table = Table("sessions", "windows", "peak memory, MB", "on the disk, MB")
    for row in found["memory"]:
        table.add_row(f"{row['sessions']}", f"{row['windows']}", f"{row['peak_mb']:.0f}", f"{row['entry_mb']:.0f}")
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Building a data set beside scipy a window and channel at a time.")
    parser.add_argument("--rounds", type=int, default=3, help="rounds by turns (default %(default)s)")
    parser.add_argument("--sessions", type=int, default=8, help="of 120 s each (default %(default)s)")
    chosen = parser.parse_args()
    show(dataset(chosen.rounds, chosen.sessions), Console())


if __name__ == "__main__":
    main()
