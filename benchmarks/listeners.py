"""Whether the recipe `listener` finds what is planted in SIMULATED listeners. In: nothing. Out: clips of unknown people told right.

The genres of a person's six clips, of three minutes each, differ by what is planted and by nothing else: 0.67, 1 and 1.5 times the person's
own rate of the skin's responses, and a heart that beats 5 a minute slower, as ever, 5 faster. People differ in level, noise and both rates,
and are calm for three minutes before. All that tells has learned from some people and judges others: the ceiling is logistic regression
on the true rates, or on how far they are from the person's own; the recipe is trained as it comes, from exports of a wristband, and a
clip is what its windows say on average. Without the effect the genres are names alone.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from kymo.lab.synth.listeners import Part, simulate_parts, write_e4
from kymo.models.bundle import load_bundle
from kymo.models.evaluate import JudgedWindow, evaluate
from kymo.models.scores import HeldOut
from kymo.models.training.train import TrainRequest, train
from kymo.processors.recipe.load import INSTALLED, Recipe, load_recipe
from kymo.streams.chunk import Array
from kymo.streams.readers import read

LEARN, UNSEEN, CLIP_S = 24, 48, 180
RESPONSES, BEATS = {"classical": 0.67, "instrumental": 1.0, "pop": 1.5}, {"classical": -5, "instrumental": 0, "pop": 5}
GENRES = [*RESPONSES]


def planned(random: np.random.Generator, effect: bool, clip_s: float = CLIP_S) -> list[Part]:
    """A person's calm minutes and six clips."""
    own, heart = 6 * random.lognormal(0, 0.3), random.normal(70, 8)
    genres = [GENRES[i % 3] for i in random.permutation(6)]
    clips = [(own * RESPONSES[g] ** effect, heart + BEATS[g] * effect, g) for g in genres]
    return [Part(clip_s, own, heart), *(Part(clip_s, *clip) for clip in clips)]


def simulated(folder: Path, people: int, seed: int, effect: bool, clip_s: float = CLIP_S) -> dict[str, list[Part]]:
    """Exports of so many people, and by session what was planned."""
    plans = {}
    for number in range(people):
        random, name = np.random.default_rng([seed, number]), f"P{seed}{number:03}"
        plans[name] = planned(random, effect, clip_s)
        level, noise = 2 * random.lognormal(0, 0.5), random.uniform(0.005, 0.03)
        signals = simulate_parts(plans[name], int(random.integers(2**31)), level, noise)
        write_e4(folder / name, signals, plans[name])
    return plans


def true_rates(plans: dict[str, list[Part]], own: bool) -> tuple[Array, Array]:
    """Of each clip both rates (or how far they are from the person's own), and its genre."""
    rates = np.array([[(np.log(p.scr_per_min), p.heart_rate) for p in plan] for plan in plans.values()])
    rates -= rates[:, :1] * own
    return rates[:, 1:].reshape(-1, 2), np.array([GENRES.index(p.label) for plan in plans.values() for p in plan[1:]])


def ceiling(learn: dict[str, list[Part]], unseen: dict[str, list[Part]], own: bool) -> Array:
    """What logistic regression says of the unseen people's clips, ``(clips, genres)``."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    told: Array = make_pipeline(StandardScaler(), LogisticRegression()).fit(*true_rates(learn, own))
    return np.asarray(told.predict_proba(true_rates(unseen, own)[0]))


def answers(recipe: Recipe, bundle: Path, folder: Path, plans: dict[str, list[Part]]) -> Array:
    """What a bundle says of each clip, ``(clips, genres)``: the sum over the windows wholly inside it."""
    sums: dict[tuple[str, int], Array] = defaultdict(lambda: np.zeros(len(GENRES)))

    def take(window: JudgedWindow) -> None:
        event = window.event
        for i, label in enumerate(sorted(window.recording.labels, key=lambda label: label.start_ns)):
            if label.start_ns <= event.start_ns and event.end_ns <= label.end_ns:
                sums[event.session, i] += [event.probabilities[genre] for genre in GENRES]

    evaluate(recipe, load_bundle(bundle), read([folder], recipe.read_options()), take)
    return np.array([sums[name, i] for name, plan in plans.items() for i in range(len(plan) - 1)])


def scored(said: Array, plans: dict[str, list[Part]]) -> dict[str, Any]:
    """Share of clips that are told right, with its 90 % interval over people."""
    clips = [(f"{name}-{i}", name) for name, plan in plans.items() for i in range(len(plan) - 1)]
    names, people = (list(column) for column in zip(*clips, strict=True))
    held = HeldOut(GENRES, true_rates(plans, False)[1], said, names, people, np.zeros(len(clips), np.int64))
    scores = held.scores()
    return {"accuracy": scores["accuracy"], "interval": scores["interval"].get("accuracy"), "n": len(clips)}


def listeners() -> list[dict[str, Any]]:
    """A row each of what tells, with the effect and without."""
    recipe = load_recipe(INSTALLED / "listener.toml")
    return [row for effect in (True, False) for row in judged(recipe, effect, (LEARN, UNSEEN))]


def judged(recipe: Recipe, effect: bool, people: tuple[int, int], clip_s: float = CLIP_S) -> list[dict[str, Any]]:
    """A row each of what tells; so many people to learn from, and to judge."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, began = Path(temporary), time.perf_counter()
        learn, unseen = (simulated(folder / str(i), n, i, effect, clip_s) for i, n in enumerate(people))
        said = {f"true rates{', beside the own' * own}": ceiling(learn, unseen, own) for own in (False, True)}
        train(recipe, TrainRequest((str(folder / "0"),), out=folder / "bundle", promote=False, report=False))
        said["frames, the recipe `listener`"] = answers(recipe, folder / "bundle", folder / "1", unseen)
        about = {"planted": "yes" if effect else "no", "people": people[1], "seconds": time.perf_counter() - began}
    return [{**about, "peer": peer, **scored(probabilities, unseen)} for peer, probabilities in said.items()]
