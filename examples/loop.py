"""``make loop``: the closed loop on real recordings. In: BasicMotions. Out: live accuracy before and after a refresh, as it goes on.

A model that knows one recording of each class runs live on the test half, which is replayed again and again. The training half arrives,
is archived and labelled; a refresh trains on it, the gate lets the new model pass (or not), and the running worker takes it over. Six
channels make these four motions so easy that one recording of each suffices; hence the loop hears one axis of the accelerometer, in
windows of 2 s. Everything is in a temporary folder that is gone afterwards.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import click

from kymo.deploy.children import Child
from kymo.examples.stage import Say, died, ended_after, perform, run_example, run_verb, verb
from kymo.processors.recipe.load import Recipe, load_recipe
from kymo.streams.events import Event, read_events
from kymo.streams.readers import read
from kymo.streams.settings import Settings

RECIPE = """
name = "loop"
[[input]]
stream = "imu"
rate_hz = 10
channels = ["ax"]
[[steps]]
step = "spectrogram"
nperseg = 16
noverlap = 14
[[steps]]
step = "log"
eps = 1e-6
[window]
length_s = 2
hop_s = 1
[[window.steps]]
step = "standardise"
[model]
architecture = "spectrogram_cnn"
[train]
split = "session"
"""
OLD, LIVE = "basicmotions:train", "basicmotions:test"
_FIRST_EVENT_S, _SCORE_S = 60.0, 2.0


@click.command()
@click.option("--speed", type=click.FloatRange(0.5, 20), default=5.0, show_default=True, help="Times the pace.")
@click.option(
    "--watch-s", type=click.FloatRange(4), default=12.0, show_default=True, help="Before and after, at least."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def loop(speed: float, watch_s: float, as_json: bool) -> None:
    """Show the closed loop: live accuracy rises when a refreshed model takes over.

    Exit status 0 only if the new model was promoted, is better live, and no event came twice.

    Example: python -m kymo.examples.loop --speed 5
    """
    perform("loop", lambda settings, say: run_loop(settings, speed, watch_s, say), as_json)


def run_loop(settings: Settings, speed: float, watch_s: float, say: Say) -> dict[str, Any]:
    """The whole of it; leaves no process behind."""
    path, segments = settings.home / "loop.toml", str(settings.home / "segments")
    path.write_text(RECIPE)
    recipe = load_recipe(str(path))
    say("training the first model …")
    say(f"first model: {first_model(settings, recipe)}, trained on one recording of each class")
    truths = {r.session: r.labels[0].label for r in read((LIVE,), recipe.read_options()) if r.labels}
    worker = verb("worker", str(path))
    replay = verb("replay", LIVE, "--recipe", str(path), "--loop", "0", "--speed", f"{speed:g}")
    with ended_after(worker, replay):
        worker.start()
        replay.start()
        watch(settings, truths, [worker, replay], watch_s, say)
        say(f"meanwhile the recordings of {OLD} arrive, with labels, and are archived …")
        run_verb("replay", OLD, "--recipe", str(path), "--speed", "max")
        run_verb("label", "import", OLD, "--column", "label")
        run_verb("archive", "--dir", segments, "--once")
        say("refresh: train on what is archived and labelled, without the sessions that judge …")
        options = ("--archive", segments, "--only", "--metric", "window_accuracy", "--json")
        outcome = json.loads(run_verb("refresh", str(path), *options))
        say(f"gate: {outcome['reason']}")
        if outcome["promoted"]:
            watch(settings, truths, [worker, replay], watch_s, say, outcome["bundle"])
    tally = LiveScore(truths)
    for event in read_events(settings):
        tally.add(event)
    return _result(settings, tally, outcome, say)


def first_model(settings: Settings, recipe: Recipe) -> str:
    """Train on the first recording of each class that may be learned from, promote; the bundle's id."""
    from kymo.models.bundle import promote
    from kymo.models.training.gate import plan_of
    from kymo.models.training.run import TrainRequest
    from kymo.models.training.train import train

    judging, sessions = plan_of(recipe, (OLD,)).held_out, set()
    first: dict[str, str] = {}
    for recording in read((OLD,), recipe.read_options()):
        sessions.add(recording.session)
        if recording.session not in judging:
            first.setdefault(recording.labels[0].label, recording.session)
    request = TrainRequest((OLD,), only=True, promote=False, without=frozenset(sessions - set(first.values())))
    bundle = train(recipe, request).bundle
    promote(bundle.id, why="the first", home=settings.home)
    return bundle.id


class LiveScore:
    """Counts what is right, by bundle."""

    def __init__(self, truths: Mapping[str, str]) -> None:
        self._truths = truths  # by session; events of others count only as seen
        self._events: list[Event] = []

    def add(self, event: Event) -> None:
        self._events.append(event)

    @property
    def repeated(self) -> int:
        """How many events came that were there already."""
        return len(self._events) - len({event.id for event in self._events})

    def bundles(self) -> list[str]:
        """Which bundles said something of sessions whose truth is known."""
        return sorted({event.bundle for event in self._events if self._counts(event)})

    def score(self, bundle: str) -> dict[str, Any]:
        """What a bundle did so far."""
        of_it = [event for event in self._events if event.bundle == bundle and self._counts(event)]
        right = sum(event.label == self._truths[event.session] for event in of_it)
        return {"bundle": bundle, "windows": len(of_it), "accuracy": right / len(of_it) if of_it else 0.0}

    def first_s(self, bundle: str, since_ns: int) -> float | None:
        """Seconds from a moment to a bundle's first event; None if it made none."""
        times = [event.emitted_ns for event in self._events if event.bundle == bundle]
        return (min(times) - since_ns) / 1e9 if times else None

    def _counts(self, event: Event) -> bool:
        return not event.head and event.session in self._truths


def watch(
    settings: Settings, truths: Mapping[str, str], children: list[Child], seconds: float, say: Say, bundle: str = ""
) -> None:
    """Tell the accuracy of the last seconds, again and again, for some time from a bundle's (or any) first event on."""
    began_ns, due_s, until_s = time.time_ns(), time.monotonic() + _SCORE_S, time.monotonic() + _FIRST_EVENT_S
    tally, seen = LiveScore(truths), False

    def over() -> bool:
        nonlocal tally, seen, due_s, until_s
        for child in children:
            if child.status is not None:
                raise died(child)
        if time.monotonic() > due_s:
            for name in tally.bundles():
                score = tally.score(name)
                say(f"live: {score['accuracy']:6.1%} of {score['windows']:4} windows, {name}")
            if not seen and (bundle in tally.bundles() if bundle else tally.bundles()):
                seen, until_s = True, time.monotonic() + seconds
            tally, due_s = LiveScore(truths), time.monotonic() + _SCORE_S
        return time.monotonic() > until_s

    for event in read_events(settings, follow=True, stop=over):
        if event.emitted_ns >= began_ns:
            tally.add(event)
        if over():
            return


def _result(settings: Settings, tally: LiveScore, outcome: dict[str, Any], say: Say) -> dict[str, Any]:
    from kymo.models.registry import open_registry

    entry = open_registry(settings.home).current("loop")
    before, after = tally.score(outcome["champion"]), tally.score(outcome["bundle"])
    took_s = tally.first_s(outcome["bundle"], entry.at_ns) if entry and outcome["promoted"] else None
    ok = outcome["promoted"] and after["accuracy"] > before["accuracy"] and not tally.repeated and took_s is not None
    for name, score in (("before:", before), ("after: ", after)):
        say(f"{name} {score['accuracy']:.1%} of {score['windows']} live windows right, {score['bundle']}")
    if took_s is not None:
        say(f"from the promotion to the first event of the new model: {took_s:.2f} s; events twice: {tally.repeated}")
    return {
        "ok": bool(ok),
        "before": before,
        "after": after,
        "promotion_to_first_event_s": took_s,
        "repeated": tally.repeated,
        "refresh": outcome,
    }


if __name__ == "__main__":
    run_example(loop)
