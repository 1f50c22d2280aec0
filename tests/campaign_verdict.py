"""What must be there after a campaign, and what went before each thing that is not. In: lab, feed, log. Out: entries `wrong`."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from campaign_faults import CampaignFeed
from campaign_lab import PARTS, Bundle, CampaignLab, Place
from fault_feed import Source
from kafka import KafkaConsumer, TopicPartition

from kymo.models.bundle import load_bundle
from kymo.models.predict import Classifier
from kymo.models.run import run
from kymo.processors.recipe.load import load_recipe
from kymo.streams.kafka.client import client_arguments

TOLERANCE = 1e-5
QUIET_S = 60.0
_APART_S = 5.0  # wrong things that are further apart have another cause
#: Members of an event that are compared by more than equality, or say nothing of the window.
_OTHERWISE = ("id", "bundle", "label", "probability", "probabilities", "emitted_ns")
Event = dict[str, Any]


def expected(lab: CampaignLab, sources: Iterable[Source], bundle: Bundle) -> dict[str, Event]:
    """By id, the events of an undisturbed run with a bundle's quick twin."""
    recipe = load_recipe(lab.recipes[bundle.recipe])
    classifier = Classifier.for_recipe(load_bundle(bundle.twin), recipe)
    recordings = [source.recording() for source in sources if source.taken]
    return {e.id: json.loads(e.to_json()) for e in run(recipe, recordings, classifier)}


def equal(event: Event, wanted: Event | None) -> bool:
    """Label and window equal, probabilities within the tolerance."""
    if wanted is None or event["label"] != wanted["label"]:
        return False
    ours, theirs = ({"": e["probability"]} | e["probabilities"] for e in (event, wanted))
    near = ours.keys() == theirs.keys() and all(abs(ours[key] - theirs[key]) <= TOLERANCE for key in ours)
    rest = [{name: value for name, value in e.items() if name not in _OTHERWISE} for e in (event, wanted)]
    return near and rest[0] == rest[1]


def _events(lab: CampaignLab) -> dict[str, list[tuple[float, Event]]]:
    """Of the recipes' own, by id: the time of sending (s) and the event; what strangers put there is left out."""
    found = defaultdict(list)
    for record in lab.records("events"):
        try:
            event = json.loads(record.value or b"")
            if event["recipe"] in PARTS:
                found[event["id"]].append((record.timestamp / 1000, event))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return found


def _settle(lab: CampaignLab, due: int, wait: Callable[[float], object]) -> None:
    """Wait until so many events are there, or none has come for a while; what comes too much, comes soon."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < (3 if last >= due else QUIET_S):
        wait(0.2)
        if (now := sum(lab.ends().values())) != last:
            last, since = now, time.monotonic()


def account(lab: CampaignLab, feed: CampaignFeed, sources: list[Source], wait: Callable[[float], object]) -> int:
    """Hold the events of ended sessions against what they must be, once no more come. Gives their number."""
    every = {bundle.id: expected(lab, sources, bundle) for bundle in lab.promoted.values()}
    need: set[str] = set()
    for name in PARTS:
        need |= set.intersection(*(set(found) for id_, found in every.items() if id_.startswith(f"{name}@")))
    _settle(lab, lab.due + len(need), wait)
    lab.due = sum(lab.ends().values())
    sessions = {source.name for source in sources}
    seen = {id_: found for id_, found in _events(lab).items() if str(found[0][1].get("session")) in sessions}
    wrong: dict[str, list[tuple[float, str]]] = {"missing": [], "doubled": [], "different": [], "not expected": []}
    wrong["missing"] = [(_sent_s(feed, id_, every), id_) for id_ in need - seen.keys()]
    possible = set().union(*every.values())
    for id_, found in seen.items():
        if id_ not in possible:
            wrong["not expected"] += [(at, id_) for at, _ in found]
            continue
        wrong["doubled"] += [(at, f"{id_} by {event['bundle'][-6:]}") for at, event in found[1:]]
        wrong["different"] += [
            (at, _apart(event, wanted))
            for at, event in found
            if not equal(event, wanted := (every.get(event["bundle"]) or {}).get(id_))
        ]
    for what, entries in wrong.items():
        for cluster in _clusters(sorted(entries)):
            first_s, last_s = cluster[0][0], cluster[-1][0]
            lab.log(
                "wrong",
                f"{len(cluster)} of {len(need)} events {what}, {'input sent' if what == 'missing' else 'published'} "
                f"{first_s - lab.log.started_s:.1f} to {last_s - lab.log.started_s:.1f} s, such as {cluster[0][1]}; "
                f"before the first: {lab.log.before(first_s)}",
            )
    return len(need)


def _apart(event: Event, wanted: Event | None) -> str:
    """What came, and what should have."""
    if wanted is None:
        return f"{event['id']} by {event['bundle']}, which was never promoted or gives no such window"
    members = {name: (value, wanted[name]) for name, value in event.items() if value != wanted[name]}
    return f"{event['id']} by {event['bundle']} (came, expected): {members}"


def _sent_s(feed: CampaignFeed, id_: str, every: dict[str, dict[str, Event]]) -> float:
    """When the input of an event was sent: the last chunk that begins before its window ends."""
    event = next(found[id_] for found in every.values() if id_ in found)
    end = event["start_index"] + (event["end_ns"] - event["start_ns"]) // 10_000_000
    sent = [at for (session, first), at in feed.sent_at_s.items() if session == event["session"] and first < end]
    return max(sent, default=0.0)


def _clusters(entries: list[tuple[float, str]]) -> list[list[tuple[float, str]]]:
    """Entries that are near each other in time."""
    out: list[list[tuple[float, str]]] = []
    for entry in entries:
        if not out or entry[0] - out[-1][-1][0] > _APART_S:
            out.append([])
        out[-1].append(entry)
    return out


def rejections(lab: CampaignLab, sent: dict[Place, bool], since: dict[int, int]) -> None:
    """Every odd record that must be was rejected, by each reader once at most, and none that is in order."""
    topic = lab.names.of("rejected")
    places = [TopicPartition(topic, number) for number in since]
    consumer = KafkaConsumer(
        **client_arguments(lab.settings), group_id=None, max_partition_fetch_bytes=2**23, metrics_enabled=False
    )
    times: Counter[tuple[str, int, int, str]] = Counter()
    try:
        consumer.assign(places)
        ends = consumer.end_offsets(places)
        for place in places:
            consumer.seek(place, since[place.partition])
        while any(consumer.position(place) < end for place, end in ends.items()):
            for records in consumer.poll(1000).values():
                for record in records:
                    about = {name: value.decode() for name, value in record.headers}
                    where = (about["topic"], int(about["partition"]), int(about["offset"]))
                    times[*where, about.get("recipe", "")] += 1
    finally:
        consumer.close()
    readers = sorted({recipe for *_, recipe in times})
    never = [place for place, must in sent.items() if must and not any(times[*place, reader] for reader in readers)]
    twice = [place for place, count in times.items() if count > 1]
    strange = [place for place in times if place[0].endswith(".sensor") and place[:3] not in sent]
    for what, found in (("never rejected", never), ("rejected more than once", twice), ("rejected, good", strange)):
        if found:
            lab.log("wrong", f"{len(found)} of {len(sent)} odd records {what}, such as {found[:3]} (readers {readers})")
    lab.log("note", f"{len(sent)} odd records, rejected {sum(times.values())} times by {readers}")
