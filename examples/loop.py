"""``make loop``: the closed loop on real recordings. In: BasicMotions. Out: live accuracy before and after a refresh, as it goes on.

A model that knows one recording of each class runs live on the test half, which is replayed again and again. The training half arrives,
is archived and labelled; a refresh trains on it, the gate lets the new model pass (or not), and the running worker takes it over. Six
channels make these four motions so easy that one recording of each suffices; hence the loop hears one axis of the accelerometer, in
windows of 2 s. Everything is in a temporary folder that is gone afterwards.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import click

from kymo.deploy.children import Child, stop
from kymo.examples.stage import Say, adopt, died, narrator, own_broker, run_example, run_verb, verb
from kymo.processors.recipe.load import Recipe, load_recipe
from kymo.streams.errors import KymoError
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
PATIENCE_S = 180.0
_FIRST_EVENT_S = 60.0
_SIGN_S, _SCORE_S = 5.0, 2.0


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
    say = narrator(as_json)
    with own_broker("loop", lambda _: say("starting Kafka")) as settings:
        adopt(settings)
        (settings.home / "loop.toml").write_text(RECIPE)
        result = _run_loop(settings, speed, watch_s, say)
    if as_json:
        click.echo(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)


def _run_loop(settings: Settings, speed: float, watch_s: float, say: Say) -> dict[str, Any]:
    """The whole of it; leaves no process behind."""
    from kymo.streams.kafka.admin import ensure_topics
    from kymo.streams.topics import Names

    recipe = load_recipe(str(settings.home / "loop.toml"))
    ensure_topics(settings, Names(settings.prefix))
    with _patience("training the first model", say):
        first = _first_model(settings)
    say(f"first model: {first}, trained on one recording of each class")
    worker = verb("worker", str(recipe.path))
    stream = verb("replay", LIVE, "--recipe", str(recipe.path), "--loop", "0", "--speed", f"{speed:g}")
    children = [worker, stream]
    with contextlib.ExitStack() as stack:
        stack.callback(stop, children)
        live = stack.enter_context(Live(settings, recipe, LIVE))
        for child in children:
            child.start()
        live.watch(watch_s, say, lambda: _check(children))
        say(f"meanwhile the recordings of {OLD} arrive, with labels, and are archived")
        with _patience("archiving", say):
            _finish("replay", OLD, "--recipe", str(recipe.path), "--speed", "max")
            _finish("label", "import", OLD, "--column", "label")
            _finish("archive", "--dir", str(settings.home / "segments"), "--once")
        say("refresh: train on what is archived and labelled, without the sessions that judge")
        with _patience("refreshing", say):
            options = ("--archive", str(settings.home / "segments"), "--only", "--metric", "window_accuracy", "--json")
            outcome = json.loads(_finish("refresh", str(recipe.path), *options))
        say(f"gate: {outcome['reason']}")
        if outcome["promoted"]:
            live.watch(watch_s, say, lambda: _check(children), outcome["bundle"])
    return _result(settings, live, outcome, say)


@contextlib.contextmanager
def _patience(work: str, say: Say) -> Iterator[None]:
    """Say what is being done, and every few seconds that it still is."""
    over, begun = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(_SIGN_S):
            say(f"  … {work}, for {time.monotonic() - begun:.0f} s")

    say(f"{work} …")
    sign = threading.Thread(target=tell, daemon=True)
    sign.start()
    try:
        yield
    finally:
        over.set()
        sign.join()


def _finish(*words: str) -> str:
    return run_verb(*words, timeout_s=PATIENCE_S)


def _check(children: list[Child]) -> None:
    for child in children:
        if child.status is not None:
            raise died(child)


def _first_model(settings: Settings) -> str:
    """Train on the first recording of each class that may be learned from, promote; the bundle's id."""
    from kymo.models.bundle import promote
    from kymo.models.training.refresh import plan_of
    from kymo.models.training.request import TrainRequest
    from kymo.models.training.train import train

    recipe = load_recipe(str(settings.home / "loop.toml"))
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


class Live:
    """Counts what is right while events come, by bundle, in a thread of its own."""

    def __init__(self, settings: Settings, recipe: Recipe, data: str) -> None:
        self._settings, self._stop, self._error = settings, threading.Event(), ""
        self._thread = threading.Thread(target=self._read, name="events", daemon=True)
        self._truths = {r.session: r.labels[0].label for r in read((data,), recipe.read_options()) if r.labels}
        self._ids: set[str] = set()
        self._right: Counter[str] = Counter()
        self._windows: Counter[str] = Counter()
        self._first_ns: dict[str, int] = {}
        self._lock = threading.Lock()
        self.repeated = 0

    def __enter__(self) -> Live:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _read(self) -> None:
        try:
            for event in read_events(self._settings, follow=True, stop=self._stop.is_set):
                self.add(event)
        except KymoError as error:
            self._error = str(error)

    def add(self, event: Event) -> None:
        """Count an event; those of other sessions count only as seen."""
        with self._lock:
            self.repeated += event.id in self._ids
            self._ids.add(event.id)
            first = self._first_ns.get(event.bundle, event.emitted_ns)
            self._first_ns[event.bundle] = min(first, event.emitted_ns)
            truth = None if event.head else self._truths.get(event.session)
            if truth is not None:
                self._windows[event.bundle] += 1
                self._right[event.bundle] += event.label == truth

    def score(self, bundle: str) -> dict[str, Any]:
        """What a bundle did so far."""
        with self._lock:
            windows, right = self._windows[bundle], self._right[bundle]
        return {"bundle": bundle, "windows": windows, "accuracy": right / windows if windows else 0.0}

    def first_s(self, bundle: str, since_ns: int) -> float | None:
        """Seconds from a moment to a bundle's first event; None if it made none."""
        return (self._first_ns[bundle] - since_ns) / 1e9 if bundle in self._first_ns else None

    def watch(
        self, seconds: float, say: Callable[[str], None], check_children: Callable[[], None], bundle: str = ""
    ) -> None:
        """Tell the accuracy of the last seconds, again and again, for some time from a bundle's (or any) first event on."""
        began, until = time.monotonic(), None
        right, windows = Counter(self._right), Counter(self._windows)
        while until is None or time.monotonic() < until:
            self._stop.wait(_SCORE_S)
            check_children()
            if self._error:
                raise KymoError(self._error)
            with self._lock:
                now_right, now_windows = Counter(self._right), Counter(self._windows)
            for name in sorted(now_windows):
                count = now_windows[name] - windows[name]
                if count:
                    say(f"live: {(now_right[name] - right[name]) / count:6.1%} of {count:4} windows, {name}")
            right, windows = now_right, now_windows
            if until is None and (now_windows[bundle] if bundle else now_windows.total()):
                until = time.monotonic() + seconds
            if until is None and time.monotonic() - began > _FIRST_EVENT_S:
                return


def _result(settings: Settings, live: Live, outcome: dict[str, Any], say: Say) -> dict[str, Any]:
    from kymo.models.registry import open_registry

    entry = open_registry(settings.home).current("loop")
    before, after = live.score(outcome["champion"]), live.score(outcome["bundle"])
    took_s = live.first_s(outcome["bundle"], entry.at_ns) if entry and outcome["promoted"] else None
    ok = outcome["promoted"] and after["accuracy"] > before["accuracy"] and not live.repeated and took_s is not None
    say(f"before: {before['accuracy']:.1%} of {before['windows']} live windows right, {before['bundle']}")
    say(f"after:  {after['accuracy']:.1%} of {after['windows']} live windows right, {after['bundle']}")
    if took_s is not None:
        say(f"from the promotion to the first event of the new model: {took_s:.2f} s; events twice: {live.repeated}")
    return {
        "ok": bool(ok),
        "before": before,
        "after": after,
        "promotion_to_first_event_s": took_s,
        "repeated": live.repeated,
        "refresh": outcome,
    }


if __name__ == "__main__":
    run_example(loop)
