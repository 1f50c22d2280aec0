"""``make loop``: the closed loop on real recordings. In: BasicMotions. Out: live accuracy before and after a refresh, as it goes on.

A model that knows one recording of each class runs live on the test half, which is replayed again and again. The training half arrives,
is archived and labelled; a refresh trains on it, the gate lets the new model pass (or not), and the running worker takes it over. Six
channels make these four motions so easy that one recording of each suffices; hence the loop hears one axis of the accelerometer, in
windows of 2 s. Everything is in a temporary folder that is gone afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from deploy.children import Child, kymo_command, kymo_environment, stop
from examples.loop_live import Live
from streams.errors import KymoError
from streams.settings import Settings

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
Say = Callable[[str], None]


@click.command()
@click.option("--speed", type=click.FloatRange(0.5, 20), default=5.0, show_default=True, help="Times the pace.")
@click.option(
    "--watch-s", type=click.FloatRange(4), default=12.0, show_default=True, help="Before and after, at least."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def loop(speed: float, watch_s: float, as_json: bool) -> None:
    """Show the closed loop: live accuracy rises when a refreshed model takes over.

    Exit status 0 only if the new model was promoted, is better live, and no event came twice.

    Example: python -m examples.loop --speed 5
    """
    started = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"{time.monotonic() - started:6.1f} s  {text}", err=as_json)

    with _place(say) as settings:
        result = run_loop(settings, speed, watch_s, say)
    if as_json:
        click.echo(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)


@contextlib.contextmanager
def _place(say: Say) -> Iterator[Settings]:
    """A broker and a home of the loop's own; nothing of the user's deployment is used."""
    from deploy import broker

    user, home = Settings.from_env(), Path(tempfile.mkdtemp(prefix="kymo-loop-"))
    for name in [name for name in os.environ if name.startswith("KYMO_")]:
        del os.environ[name]
    try:
        say("starting Kafka")
        info = broker.start(home / "broker", jars_dir=user.home / "kafka")
        os.environ |= {"KYMO_HOME": str(home), "KYMO_BROKERS": info.bootstrap, "KYMO_METRICS_PORT": "0"}
        (home / "loop.toml").write_text(RECIPE)
        yield Settings.from_env()
    finally:
        broker.stop(home / "broker", timeout_s=10.0)
        shutil.rmtree(home, ignore_errors=True)


def run_loop(settings: Settings, speed: float, watch_s: float, say: Say) -> dict[str, Any]:
    """The whole of it; leaves no process behind."""
    from processors.recipe.load import load_recipe
    from streams.kafka.admin import ensure_topics
    from streams.topics import Names

    recipe = load_recipe(str(settings.home / "loop.toml"))
    ensure_topics(settings, Names(settings.prefix))
    with _patience("training the first model", say):
        first = first_model(settings)
    say(f"first model: {first}, trained on one recording of each class")
    worker = _child("worker", str(recipe.path))
    stream = _child("replay", LIVE, "--recipe", str(recipe.path), "--loop", "0", "--speed", f"{speed:g}")
    running = [worker, stream]
    with contextlib.ExitStack() as stack:
        stack.callback(stop, running)
        live = stack.enter_context(Live(settings, recipe, LIVE))
        for child in running:
            child.start()
        live.watch(watch_s, say, lambda: _check(running))
        say(f"meanwhile the recordings of {OLD} arrive, with labels, and are archived")
        with _patience("archiving", say):
            _done("replay", OLD, "--recipe", str(recipe.path), "--speed", "max")
            _done("label", "import", OLD, "--column", "label")
            _done("archive", "--dir", str(settings.home / "segments"), "--once")
        say("refresh: train on what is archived and labelled, without the sessions that judge")
        with _patience("refreshing", say):
            words = ("refresh", str(recipe.path), "--archive", str(settings.home / "segments"), *_REFRESH)
            outcome = json.loads(_done(*words))
        say(f"gate: {outcome['reason']}")
        if outcome["promoted"]:
            live.watch(watch_s, say, lambda: _check(running), outcome["bundle"])
    return _result(settings, live, outcome, say)


@contextlib.contextmanager
def _patience(what: str, say: Say) -> Iterator[None]:
    """Say what is being done, and every few seconds that it still is."""
    over, begun = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(_SIGN_S):
            say(f"  … {what}, for {time.monotonic() - begun:.0f} s")

    say(f"{what} …")
    sign = threading.Thread(target=tell, daemon=True)
    sign.start()
    try:
        yield
    finally:
        over.set()
        sign.join()


_SIGN_S = 5.0
_REFRESH = ("--only", "--metric", "window_accuracy", "--json")


def _result(settings: Settings, live: Live, outcome: dict[str, Any], say: Say) -> dict[str, Any]:
    from models.registry import open_registry

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


def first_model(settings: Settings) -> str:
    """Train on the first recording of each class that may be learned from, promote; the bundle's id."""
    from models.registry.promote import promote
    from models.training.refresh import plan_of
    from models.training.request import TrainRequest
    from models.training.train import train
    from processors.recipe.load import load_recipe
    from streams.readers import read

    recipe = load_recipe(str(settings.home / "loop.toml"))
    held, every = plan_of(recipe, (OLD,)).held_out, set()
    first: dict[str, str] = {}
    for recording in read((OLD,), recipe.read_options()):
        every.add(recording.session)
        if recording.session not in held:
            first.setdefault(recording.labels[0].label, recording.session)
    request = TrainRequest((OLD,), only=True, promote=False, without=frozenset(every - set(first.values())))
    bundle = train(recipe, request).bundle
    promote(bundle.id, why="the first", home=settings.home)
    return bundle.id


def _child(*words: str) -> Child:
    return Child(words[0], kymo_command(*words), kymo_environment({}))


def _done(*words: str) -> str:
    """Run a verb to its end; what it printed last."""
    import subprocess

    done = subprocess.run(
        kymo_command(*words), env=kymo_environment({}), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    if done.returncode:
        raise KymoError(f"kymo {' '.join(words[:2])} failed: {(done.stderr.splitlines() or ['it said nothing'])[-1]}")
    return (done.stdout.splitlines() or [""])[-1]


def _check(running: list[Child]) -> None:
    for child in running:
        if child.status is not None:
            raise KymoError(f"kymo {child.name} has ended ({child.ended()}): {' | '.join(list(child.tail)[-3:])}")


if __name__ == "__main__":
    try:
        loop.main(standalone_mode=False)
    except (KymoError, click.ClickException) as failure:
        click.echo(f"kymo: {failure}", err=True)
        sys.exit(1)
    except click.Abort:
        sys.exit(130)
