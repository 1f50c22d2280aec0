"""``make magnetic``: from nothing to a serving model. In: nothing. Out: a detector of magnetic distortion, trained, registered, tried live.

Random motion plans are carried out, the recipe's transformer (with MiniRocket and a plain rule beside it) is trained on them and
promoted, and a worker on the embedded Kafka follows a drone of 10 minutes that meets five distortions, replayed faster than it flew. All
data are synthetic. Everything is in a temporary folder that is gone afterwards, unless ``--home`` names another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kymo.examples.stage import Say, compare, ended_after, live_events, perform, run_example, run_verb, verb
from kymo.streams.events import Event, read_events
from kymo.streams.settings import Settings

RECIPE, SESSION = "magnetic", "drone"
PLANS, SEED = 60, 1
CHECKED = 0.9  # share of the windows wholly of one class that must be right


@click.command()
@click.option("--plans", type=click.IntRange(6), default=PLANS, show_default=True, help="Random plans to learn from.")
@click.option("--speed", type=click.FloatRange(1, 100), default=20.0, show_default=True, help="Times the pace.")
@click.option("--home", type=click.Path(path_type=Path, file_okay=False), help="Keep data, registry and topics here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def magnetic(plans: int, speed: float, home: Path | None, as_json: bool) -> None:
    """Make data, train, register, serve: magnetic distortion, live.

    Exit status 0 only if every window's event came once, equal to the offline one, and nine of ten are right.

    Example: python -m kymo.examples.magnetic --speed 50
    """
    perform("magnetic", lambda settings, say: run_all(settings, plans, speed, say), as_json, home)


def run_all(settings: Settings, plans: int, speed: float, say: Say) -> dict[str, Any]:
    """The whole of it; leaves no process behind."""
    from kymo.lab.synth.random_plans import RandomPlans, synth_random

    data, drone = settings.home / "plans", settings.home / f"{SESSION}.mcap"
    say(f"carrying out {plans} random motion plans: a third each of undisturbed, weakly and strongly distorted")
    synth_random(plans, data, RandomPlans(), seed=SEED)
    make_drone(drone)
    say("training")
    trained = json.loads(run_verb("train", RECIPE, "--data", str(data), "--json", quiet=False))
    say(f"trained and promoted: {trained['bundle']}")
    expected = offline(drone)
    say(f"a worker serves it; a drone flies for 10 min and meets five distortions, at {speed:g} times its pace")
    events = live(settings, drone, speed, len(expected), say)
    return verdict(events, expected, trained["bundle"], say)


def make_drone(path: Path) -> None:
    """The drone's recording and its labels, of the plan that comes with the recipe."""
    from kymo.lab.synth.files import synth
    from kymo.processors.recipe.load import INSTALLED

    synth(INSTALLED / "magnetic_drone.json", path, path.with_suffix(".labels.json"), seed=0)


def offline(path: Path, bundle: str | None = None) -> list[tuple[Event, str, bool]]:
    """What ``kymo run`` says of a labelled recording."""
    from kymo.models.bundle import load_bundle
    from kymo.models.data.dataset import labels_of
    from kymo.models.predict import Classifier
    from kymo.models.run import run
    from kymo.processors.recipe.load import load_recipe
    from kymo.streams.labels.labels import Cover
    from kymo.streams.readers import read

    recipe = load_recipe(RECIPE)
    recordings = list(read([path], recipe.read_options()))
    cover = Cover([label for recording in recordings for label in labels_of(recording, recipe)])
    classifier = Classifier.for_recipe(load_bundle(bundle or RECIPE), recipe)
    out = []
    for event in run(recipe, recordings, classifier):
        truth = cover.label_of(event.start_ns, event.end_ns, 0.0)
        out.append((event, truth or "", cover.label_of(event.start_ns, event.end_ns, 1.0) is not None))
    return out


def live(settings: Settings, path: Path, speed: float, count: int, say: Say) -> list[Event]:
    """Events as they come while a worker follows a replay, until there are as many as expected, or none comes any more."""
    worker, replay = verb("worker", RECIPE), verb("replay", str(path), "--recipe", RECIPE, "--speed", f"{speed:g}")
    last, first_ns = "", 0
    with ended_after(worker, replay):
        worker.start()
        replay.start()
        for event in live_events(settings, worker, replay, count):
            first_ns = first_ns or event.start_ns
            if event.label != last:
                at_s = (event.start_ns - first_ns) / 1e9
                say(f"live: {event.label:8} from {at_s:5.0f} s of the flight on ({event.probability:.0%})")
            last = event.label
    return list(read_events(settings))  # what came late or twice is there now, as the worker has ended


def verdict(
    events: Sequence[Event], expected: Sequence[tuple[Event, str, bool]], bundle: str, say: Say
) -> dict[str, Any]:
    """What was measured; ``ok`` says whether all went well."""
    offline = {event.id: event for event, _, _ in expected}
    wrong = compare(list(offline), events, list(offline.values()))
    label = {event.id: event.label for event in events}
    twice, missing = len(events) - len(label), len(wrong["missing"])
    differ = len(wrong["different"]) + len(wrong["unexpected"])
    inside = [label.get(event.id) == truth for event, truth, whole in expected if whole]
    border = [label.get(event.id) == truth for event, truth, whole in expected if not whole]
    share = sum(inside) / len(inside) if inside else 0.0
    say(
        f"{len(events)} events of {len(offline)} windows: {twice} twice, {missing} missing, {differ} unlike the offline ones"
    )
    say(f"right: {share:.1%} of {len(inside)} windows of one class, {sum(border)} of {len(border)} on borders")
    others = sorted({event.bundle for event in events} - {bundle})
    return {
        "ok": bool(not (twice or missing or differ or others) and share >= CHECKED),
        "bundle": bundle,
        "events": len(events),
        "twice": twice,
        "missing": missing,
        "unlike_offline": differ,
        "accuracy": share,
        "windows": len(inside),
        "on_borders": {"right": sum(border), "windows": len(border)},
    }


if __name__ == "__main__":
    run_example(magnetic)
