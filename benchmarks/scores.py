"""Whether the scores that `kymo train` prints are those of new people. In: nothing (simulated people). Out: printed less true, and how
often the printed interval holds the true score.

A population is 8 to 12 people who do four movements twice each, 4 s long, three channels at 20 Hz. Movements differ in their
rate, strength and posture, and are drawn anew for each population, as is how much people differ: a person has a pace, a vigour and a
way to wear the sensor in all of the recordings, which matter more than the noise of a window. `train` (a small MiniRocket, a network on
spectrograms beside it) prints its scores; what it bundles is then given one recording each of thousands of other people of
the same distribution. Beside the printed interval stands the plain bootstrap over the same people's answers (5th and 95th percentile of
the score of people drawn with replacement).

    python -m benchmarks scores
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from kymo.models.bundle import load_bundle
from kymo.models.evaluate import evaluate
from kymo.models.scores import HeldOut, Tally
from kymo.models.training.train import TrainRequest, train
from kymo.processors.recipe.load import Recipe, parse_recipe
from kymo.streams.chunk import NS, Header, signal_format
from kymo.streams.labels.labels import interval
from kymo.streams.recording import Recording, StreamData

POPULATIONS, UNSEEN = 60, 2_000
SCORES = ("accuracy", "macro_f1", "window_accuracy")
RATE_HZ, SECONDS, MOVEMENTS, TAKES = 20, 4, 4, 2
_RESAMPLES = 1_000
Floats = NDArray[np.float64]

RECIPE = """
name = "population"
[[input]]
stream = "sensor"
rate_hz = 20
channels = ["x", "y", "z"]
[[steps]]
step = "spectrogram"
nperseg = 16
noverlap = 8
[[steps]]
step = "log"
[window]
length_s = 2
hop_s = 2
[[window.steps]]
step = "standardise"
[model]
architecture = "minirocket"
features = 420
[source]
session = ["take"]
subject = "who"
[labels]
column = "label"
[train]
split = "subject"
epochs = 8
patience = 2
compare = ["spectrogram_cnn"]
"""


class Population:
    """A kind of people, of whom any number can be drawn."""

    def __init__(self, random: np.random.Generator) -> None:
        self.rates = np.exp(np.linspace(np.log(0.8), np.log(3.2), MOVEMENTS) + random.normal(0, 0.1, MOVEMENTS))
        self.strengths = random.uniform(0.6, 1.6, MOVEMENTS)
        self.postures = random.normal(0, 0.5, (MOVEMENTS, 3))
        self.pace, self.vigour, self.wearing = random.uniform(0.5, 1.5, 3) * (0.2, 0.35, 0.6)

    def takes(self, people: int, doing: list[tuple[int, int]], random: np.random.Generator) -> Iterator[Recording]:
        """A recording of each person and movement."""
        pace, vigour = (np.exp(random.normal(0, spread, people)) for spread in (self.pace, self.vigour))
        wearing = random.normal(0, self.wearing, (people, 3))
        times, fmt = np.arange(RATE_HZ * SECONDS) / RATE_HZ, signal_format("sensor", ("x", "y", "z"), RATE_HZ)
        for number, (person, movement) in enumerate(doing):
            turns = self.rates[movement] * pace[person] * times * np.exp(random.normal(0, 0.03))
            swing = self.strengths[movement] * vigour[person] * np.sin(2 * np.pi * (turns + random.uniform()))
            axes, noise = np.array([1.0, 0.5, 0.2]), random.normal(0, 0.4, (len(times), 3))
            data = self.postures[movement] + wearing[person] + swing[:, None] * axes + noise
            header = Header(f"{number}", 0, fmt)
            stream = StreamData(header, data.astype(fmt.dtype))
            label = interval(session=f"{number}", set="label", start_ns=0, end_ns=SECONDS * NS, label=f"m{movement}")
            yield Recording(f"{number}", [stream], [label], f"p{person}")


def write(path: Path, recordings: Iterable[Recording]) -> None:
    """Write recordings as one table."""
    lines = ["t,x,y,z,label,who,take"]
    for recording in recordings:
        rest = f"{recording.labels[0].label},{recording.subject},{recording.session}"
        rows = enumerate(recording.streams[0].data.tolist())
        lines += [f"{i / RATE_HZ:.2f},{x:.3f},{y:.3f},{z:.3f},{rest}" for i, (x, y, z) in rows]
    path.write_text("\n".join(lines) + "\n")


def scores(populations: int = POPULATIONS, unseen: int = UNSEEN, seed: int = 1) -> dict[str, Any]:
    """All figures: of each population, and what comes of them."""
    began, recipe, rows = time.perf_counter(), parse_recipe(RECIPE), []
    for number in range(populations):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_population(recipe, Path(folder), unseen, np.random.default_rng([seed, number])))
    seconds = time.perf_counter() - began
    return {
        "populations": rows,
        "unseen": unseen,
        "seconds": seconds,
        **{name: _summary(rows, name) for name in SCORES},
    }


def _population(recipe: Recipe, folder: Path, unseen: int, random: np.random.Generator) -> dict[str, Any]:
    kind, people = Population(random), int(random.integers(8, 13))
    known = [(person, movement) for person in range(people) for movement in range(MOVEMENTS) for _ in range(TAKES)]
    write(folder / "known.csv", kind.takes(people, known, random))
    request = TrainRequest((str(folder / "known.csv"),), out=folder / "bundle", promote=False, report=False)
    trained = train(recipe, request)
    new = kind.takes(unseen, [(person, person % MOVEMENTS) for person in range(unseen)], random)
    true = evaluate(recipe, load_bundle(folder / "bundle"), new)
    printed, plain = trained.scores, bootstrap(trained.record.held_out, random)
    row: dict[str, Any] = {"people": people, "architecture": trained.record.architecture}
    for name in SCORES:
        row[name] = {
            "printed": printed[name],
            "true": true[name],
            "interval": printed["interval"][name],
            "bootstrap": plain[name],
        }
    return row


def bootstrap(held: HeldOut, random: np.random.Generator) -> dict[str, list[float]]:
    """The 5th and the 95th percentile of each score over people drawn with replacement."""
    tally = held.tally()
    each = np.stack(list(tally.counts.values()))
    drawn = random.multinomial(len(each), np.full(len(each), 1 / len(each)), _RESAMPLES)
    resampled = [Tally(tally.labels, {"": counts}).brief() for counts in np.tensordot(drawn.astype(float), each, 1)]
    return {name: np.percentile([one[name] for one in resampled], [5, 95]).tolist() for name in SCORES}


def _summary(rows: list[dict[str, Any]], name: str) -> dict[str, float]:
    values = [row[name] for row in rows]
    errors = np.array([value["printed"] - value["true"] for value in values])
    held = [value["interval"][0] <= value["true"] <= value["interval"][1] for value in values]
    held_plain = [value["bootstrap"][0] <= value["true"] <= value["bootstrap"][1] for value in values]
    widths = {
        key: float(np.mean([value[key][1] - value[key][0] for value in values])) for key in ("interval", "bootstrap")
    }
    return {
        "printed": float(np.mean([value["printed"] for value in values])),
        "true": float(np.mean([value["true"] for value in values])),
        "error": float(errors.mean()),
        "error_of_mean": float(errors.std(ddof=1) / np.sqrt(len(errors))) if len(errors) > 1 else float("nan"),
        "covered": float(np.mean(held)),
        "width": widths["interval"],
        "bootstrap_covered": float(np.mean(held_plain)),
        "bootstrap_width": widths["bootstrap"],
    }


def show(found: dict[str, Any], console: Console) -> None:
    """Print the table."""
    names = ("printed", "true", "printed less true", "90 % interval holds", "its width", "bootstrap holds", "its width")
    count = len(found["populations"])
    table = Table(
        "", title=f"printed scores of {count} populations, {found['unseen']} new people each, {found['seconds']:.0f} s"
    )
    for name in names:
        table.add_column(name, justify="right")
    for name in SCORES:
        row = found[name]
        error = f"{100 * row['error']:+.1f} ± {100 * row['error_of_mean']:.1f}"
        rest = (f"{100 * row[key]:.1f}" for key in ("covered", "width", "bootstrap_covered", "bootstrap_width"))
        table.add_row(name.replace("_", " "), f"{100 * row['printed']:.1f}", f"{100 * row['true']:.1f}", error, *rest)
    console.print(table)
