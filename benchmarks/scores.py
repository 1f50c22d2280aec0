"""Whether the scores that `kymo train` prints are those of new people. In: nothing (simulated people). Out: printed less true, and how
often the printed interval holds the true score.

A population is 8 to 12 people who do four movements twice each, 4 s long, three channels at 20 Hz. Movements differ in their
rate, strength and posture, and are drawn anew for each population, as is how much people differ: a person has a pace, a vigour and a
way to wear the sensor in all of the recordings, which matter more than the noise of a window. `train` (a small MiniRocket, a network on
spectrograms beside it) prints its scores; what it bundles is then given one recording each of thousands of other people of
the same distribution. Beside the printed interval stands the plain bootstrap over the same people's answers (5th and 95th percentile of
the score of people drawn with replacement).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    lines = ["t,x,y,z,label,who,take"]
    for recording in recordings:
        rest = f"{recording.labels[0].label},{recording.subject},{recording.session}"
        rows = enumerate(recording.streams[0].data.tolist())
        lines += [f"{i / RATE_HZ:.2f},{x:.3f},{y:.3f},{z:.3f},{rest}" for i, (x, y, z) in rows]
    path.write_text("\n".join(lines) + "\n")


def scores(populations: int = POPULATIONS, unseen: int = UNSEEN, seed: int = 1) -> dict[str, list[dict[str, Any]]]:
    """A row a score, and the figures of each population."""
    began, recipe, rows = time.perf_counter(), parse_recipe(RECIPE), []
    for number in range(populations):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_population(recipe, Path(folder), unseen, np.random.default_rng([seed, number])))
    about = {"populations": populations, "unseen": unseen, "seconds": time.perf_counter() - began}
    return {"scores": [about | {"score": name} | _summary(rows, name) for name in SCORES], "populations": rows}


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
    """Over populations; shares in percent."""
    printed, true = (100 * np.array([row[name][key] for row in rows]) for key in ("printed", "true"))
    errors = printed - true
    figures = {"printed": printed.mean(), "true": true.mean(), "error": errors.mean()}
    figures["error_of_mean"] = errors.std(ddof=1) / np.sqrt(len(errors)) if len(errors) > 1 else np.nan
    for key, prefix in (("interval", ""), ("bootstrap", "bootstrap_")):
        low, high = 100 * np.array([row[name][key] for row in rows]).T
        figures |= {f"{prefix}covered": 100 * ((low <= true) & (true <= high)).mean()}
        figures |= {f"{prefix}width": (high - low).mean()}
    return {key: float(figure) for key, figure in figures.items()}
