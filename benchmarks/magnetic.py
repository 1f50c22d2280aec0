"""How well magnetic distortion is told. In: nothing (random motion plans). Out: macro F1 on plans that nothing was learned from.

The recipe's transformer, MiniRocket and the rule on the magnitude learn from the same random plans and are judged on 30 others, of
another seed: magnetometer noise of 0.4 µT rms an axis in a field of 50 µT, distortion directions drawn evenly on the sphere, the vector
30 % of the field, of which ``low`` has 20 %. Windows wholly inside one segment count; those on borders are judged by the class that covers
most of them, and reported apart. Beside them stands what could be had: a component along the axis across both field and gravity changes
neither the field's length nor its inclination, so a tenth of a strong distortion's directions, and a few more, look weak. The best that
a window's mean components along and across gravity allow, their undisturbed values known and the two thresholds those that fit best to
the plans that all learned from, is the row `bound`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.lab.synth.random_plans import RandomPlans, random_recordings, synth_random
from kymo.models.bundle import load_bundle
from kymo.models.evaluate import JudgedWindow, evaluate
from kymo.models.scores import confusion, score
from kymo.models.training.train import TrainRequest, train
from kymo.processors.recipe.load import INSTALLED, parse_recipe
from kymo.streams.readers import read

LEARN, UNSEEN = 60, 30
LEARN_SEED, UNSEEN_SEED = 1, 2
MODELS = ("ast", "minirocket", "magnitude_rule")
CLASSES = ("none", "low", "high")
Pairs = list[tuple[str, str]]
Floats = NDArray[np.float64]


def magnetic(learn: int = LEARN, unseen: int = UNSEEN, epochs: int | None = None) -> list[dict[str, Any]]:
    """A row a model, and one of what could be had; so many random plans to learn from, and to judge on."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        synth_random(learn, folder / "learn", RandomPlans(), seed=LEARN_SEED)
        synth_random(unseen, folder / "unseen", RandomPlans(), seed=UNSEEN_SEED)
        text = (INSTALLED / "magnetic.toml").read_text()
        for name in MODELS:
            recipe = parse_recipe(text.replace('architecture = "ast"', f'architecture = "{name}"'))
            request = TrainRequest(
                (str(folder / "learn"),), epochs, out=folder / name, only=True, promote=False, report=False
            )
            began = time.perf_counter()
            train(recipe, request)
            seconds = time.perf_counter() - began
            inside, border = (_scores(pairs) for pairs in judged(recipe, folder / name, folder / "unseen"))
            on_border = {"border_f1": border["macro_f1"], "border_windows": border["n"], "border": border}
            rows.append({"peer": name, "seconds": seconds} | inside | on_border)
    return [{"plans": unseen} | row for row in (*rows, {"peer": "bound"} | bound(learn, unseen))]


def judged(recipe: Any, bundle: Path, data: Path) -> tuple[Pairs, Pairs]:
    """Truth and answer of the windows wholly inside one segment, and of those on borders."""
    inside: Pairs = []
    border: Pairs = []

    def take(window: JudgedWindow) -> None:
        start, end = window.event.start_ns, window.event.end_ns
        whole = any(label.start_ns <= start and end <= label.end_ns for label in window.recording.labels)
        said = window.event.probabilities
        (inside if whole else border).append((window.truth, max(said, key=lambda name: said[name])))

    evaluate(recipe, load_bundle(str(bundle)), read([data], recipe.read_options()), take)
    return inside, border


def bound(learn: int, unseen: int) -> dict[str, Any]:
    """Scores of two thresholds on how far the levelled field is off, in windows wholly inside one segment."""
    off, classes = _levelled(learn, LEARN_SEED)
    thresholds = [_threshold(off, classes, low) for low in (0, 1)]
    off, classes = _levelled(unseen, UNSEEN_SEED)
    answers = np.digitize(off, thresholds)
    return score(confusion(classes, answers, len(CLASSES)), CLASSES)


def _scores(pairs: Pairs) -> dict[str, Any]:
    truths, answers = ([CLASSES.index(name) for name in side] for side in zip(*pairs, strict=True))
    return score(confusion(truths, answers, len(CLASSES)), CLASSES)


def _levelled(count: int, seed: int) -> tuple[Floats, NDArray[np.int64]]:
    """How far a window's mean components along and across gravity are off together, in fields; and its class."""
    off, classes = [], []
    for made in (made for _, _, made in random_recordings(count, RandomPlans(), seed=seed)):
        acc, mag, segment = made.topics["acc_raw"], made.topics["mag_raw"], made.segment[made.raw_index]
        along = (mag * acc).sum(1) / np.linalg.norm(acc, axis=1)
        across = np.sqrt((mag * mag).sum(1) - along * along)
        for start in _windows(segment):
            part = slice(start, start + 300)
            off.append(np.hypot(across[part].mean() - 1, along[part].mean()))
            classes.append(CLASSES.index(made.plan.segments[segment[start]].level))
    return np.array(off), np.array(classes)


def _windows(segment: NDArray[np.intp]) -> Iterator[int]:
    """Starts of the windows of 3 s, every second, that lie wholly inside one segment."""
    return (s for s in range(0, len(segment) - 299, 100) if segment[s] == segment[s + 299])


def _threshold(off: Floats, classes: NDArray[np.int64], low: int) -> float:
    """Between two neighbouring classes, where the fewest are on the wrong side."""
    of = (classes == low) | (classes == low + 1)
    values, high = off[of], classes[of] > low
    candidates = np.sort(values)
    wrong = [np.sum((values > c) != high) for c in candidates]
    return float(candidates[int(np.argmin(wrong))])
