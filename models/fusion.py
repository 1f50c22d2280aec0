"""Late fusion: the events of several recipes as those of one. In: Events of one session, by recipe in order. Out: fused Events.

The windows are those of the first recipe. To each belongs, of every other recipe, the event that overlaps it longest; what the classes'
probabilities are on average, weighted, is what the fused event says. A window waits until no later event of a recipe could overlap it
longer, so that in which order the recipes' events come makes no difference. Only to wait no longer for a recipe that is silent is a
choice, which :meth:`Fusion.tick` makes; the event says which recipes were absent.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kymo.models.bundle import UNKNOWN
from kymo.models.predict import BatchClassifier
from kymo.models.run import Report, run
from kymo.processors.recipe.fusion import FusionRecipe
from kymo.processors.recipe.load import Recipe
from kymo.streams.errors import BundleError
from kymo.streams.events import Event, event_id
from kymo.streams.recording import Recording

#: Events of a recipe that are kept while those of the first are awaited; then the oldest go.
KEPT_BYTES = 4 * 2**20
_EVENT_BYTES, _CLASS_BYTES = 600, 60  # of an event as it is stored, about
#: After so long without any event nothing is kept: what came may be of windows whose own recipe is behind by as much.
FORGOTTEN_NS = 3_600 * 10**9


class Fusion:
    """What fuses the events of a session; a :class:`kymo.models.serving.scopes.Machine`."""

    def __init__(self, recipe: FusionRecipe) -> None:
        self._recipe = recipe
        self._first, *self._others = (table.events for table in recipe.input)
        # Wall time and event time alike: until it is over, a window of a recipe is not silence.
        own_ns = {r.name: int(max(r.window.length_s, r.window.hop_s) * 10**9) for r in recipe.recipes}
        self._patience_ns = {t.events: own_ns[t.events] + int(t.lateness_s * 1e9) for t in recipe.input}
        self._idle_ns = {t.events: own_ns[t.events] + int(t.idle_s * 1e9) for t in recipe.input}
        self._weights = {t.events: t.weight for t in recipe.input}
        self._windows: deque[Event] = deque()  # of the first, not fused yet
        self._events: dict[str, deque[Event]] = {name: deque() for name in self._others}
        self._newest: dict[str, tuple[int, int, int]] = {}  # by recipe: first sample, start, end
        self._came_ns: dict[str, int] = {}  # by recipe, when one last came, as far as this life knows
        self._awake_ns = 0
        self._silent: set[str] = set()  # not waited for

    @property
    def over(self) -> bool:
        return not self._newest

    def push(self, item: Event, now_ns: int) -> list[Event]:
        """Take an event; give the windows that became whole."""
        name, newest = item.recipe, self._newest.get(item.recipe)
        if newest is not None and item.start_index <= newest[0]:
            return []
        if self.over:
            self._awake_ns = now_ns
        self._newest[name] = item.start_index, item.start_ns, item.end_ns
        self._came_ns[name] = now_ns
        self._silent.discard(name)
        (self._windows if name == self._first else self._events[name]).append(item)
        if name != self._first:
            most = KEPT_BYTES // (len(self._others) * (_EVENT_BYTES + _CLASS_BYTES * len(item.probabilities)))
            while len(self._events[name]) > most:
                self._events[name].popleft()
        return self._advance(lambda *_: False)

    def tick(self, now_ns: int) -> list[Event]:
        """Hear that it is so late: wait no longer for what is silent while others went on, and for nothing where all are."""
        silent_ns = now_ns - max(map(self._heard_ns, self._newest), default=now_ns)
        if silent_ns >= FORGOTTEN_NS:
            return self.flush()
        if silent_ns >= max(self._idle_ns.values()):
            return self._advance(lambda *_: True)
        self._silent |= {name for name in self._others if now_ns - self._heard_ns(name) >= self._idle_ns[name]}
        return self._advance(lambda *about: self._is_late(*about) and now_ns >= self._late_ns(about[0]))

    def flush(self) -> list[Event]:
        """Wait for nothing more, as at a session's end, and remember nothing."""
        fused = self._advance(lambda *_: True)
        self._newest, self._came_ns, self._silent = {}, {}, set()
        for events in self._events.values():
            events.clear()
        return fused

    def _heard_ns(self, name: str) -> int:
        return self._came_ns.get(name, self._awake_ns)

    def _late_ns(self, name: str) -> int:
        return self._heard_ns(name) + self._patience_ns[name]

    def _is_late(self, name: str, window: Event) -> bool:
        """Whether others are so far ahead that a recipe's event for a window should be there."""
        ahead_ns = max(end_ns for other, (_, _, end_ns) in self._newest.items() if other != name)
        return ahead_ns - window.end_ns >= self._patience_ns[name]

    @property
    def due_ns(self) -> int | None:
        if self.over:
            return None
        due = [
            max(map(self._heard_ns, self._newest)) + (max(self._idle_ns.values()) if self._windows else FORGOTTEN_NS)
        ]
        for name in self._others if self._windows else ():
            if name not in self._silent and not self._is_known(name, self._windows[0]):
                due.append(self._heard_ns(name) + self._idle_ns[name])
                due += [self._late_ns(name)] if self._is_late(name, self._windows[0]) else []
        return min(due)

    def _best(self, name: str, window: Event) -> tuple[int, Event | None]:
        """The event of a recipe that overlaps a window longest, the first of equals; and by how much, ns."""
        best, found = 0, None
        for event in self._events[name]:
            overlap = min(event.end_ns, window.end_ns) - max(event.start_ns, window.start_ns)
            if overlap > best:
                best, found = overlap, event
        return best, found

    def _is_known(self, name: str, window: Event) -> bool:
        """Whether no later event of a recipe, which begins later, can overlap a window longer."""
        newest = self._newest.get(name)
        return newest is not None and self._best(name, window)[0] >= window.end_ns - newest[1]

    def _advance(self, given_up: Callable[[str, Event], bool]) -> list[Event]:
        fused = list[Event]()
        while self._windows:
            window = self._windows[0]
            if not all(self._is_known(n, window) or n in self._silent or given_up(n, window) for n in self._others):
                break
            fused.append(self._fuse(self._windows.popleft()))
            for events in self._events.values():
                while events and events[0].end_ns <= window.start_ns:
                    events.popleft()
        return fused

    def _fuse(self, window: Event) -> Event:
        found = {name: self._best(name, window)[1] for name in self._others}
        members = [window, *(event for event in found.values() if event is not None)]
        # One whose numbers could not be judged says nothing; the others do.
        sure = [event for event in members if any(event.probabilities.values())]
        total = sum(self._weights[event.recipe] for event in sure)
        probabilities = dict.fromkeys((label for event in members for label in event.probabilities), 0.0)
        for event in sure:
            for label, probability in event.probabilities.items():
                probabilities[label] += probability * self._weights[event.recipe] / total
        absent = [name for event in members for name in event.absent]
        probabilities = {label: min(probability, 1.0) for label, probability in probabilities.items()}  # of rounding
        best = max(probabilities, key=probabilities.__getitem__, default=UNKNOWN)
        probability = probabilities.get(best, 0.0)
        return replace(
            window,
            id=event_id(self._recipe.name, window.session, window.start_index),
            recipe=self._recipe.name,
            bundle=" + ".join(event.bundle for event in members),
            label=best if probability and probability >= self._recipe.fusion.min_probability else UNKNOWN,
            probability=probability,
            probabilities=probabilities,
            missing=max(event.missing for event in members),
            absent=list(dict.fromkeys([name for name, event in found.items() if event is None] + absent)),
            emitted_ns=0,
        )

    def snapshot(self) -> dict[str, Any]:
        return {
            "windows": [event.to_dict() for event in self._windows],
            "events": {name: [event.to_dict() for event in events] for name, events in self._events.items()},
            "newest": self._newest,
            "silent": sorted(self._silent),
        }

    def restore(self, state: Mapping[str, Any], now_ns: int) -> None:
        """Become what :meth:`snapshot` was taken of; nothing is silent before it had the time to be heard."""
        known = {self._first, *self._others}
        # The recipe may have taken others by then.
        self._windows.extend(Event(**event) for event in state["windows"] if event["recipe"] == self._first)
        for name in self._others:
            self._events[name].extend(Event(**event) for event in state["events"].get(name, ()))
        self._newest = {name: (a, b, c) for name, (a, b, c) in state["newest"].items() if name in known}
        self._silent, self._awake_ns = set(state["silent"]) & known, now_ns


def run_fusion(
    recipe: FusionRecipe,
    classifiers: Sequence[BatchClassifier],  # of the recipes that it fuses, in their order
    recordings_for: Callable[[Recipe], Iterable[Recording]],  # all recordings, as a recipe reads them
    report: Report | None = None,  # filled
) -> Iterator[Event]:
    """Classify recordings by each of the recipes, and fuse their events: those of a worker where no recipe was silent for too long."""
    report = report if report is not None else Report()
    _check_classes(recipe, classifiers)
    by_session: dict[str, list[Event]] = {}
    for member, classifier in zip(recipe.recipes, classifiers, strict=True):
        own = Report()
        for event in run(member, recordings_for(member), classifier, report=own):
            if not event.head:
                by_session.setdefault(event.session, []).append(event)
        report.recordings = max(report.recordings, own.recordings)
        del own.counts["unmatched"]  # streams that others of the recipes may take
        report.counts.update(own.counts)
        report.repairs |= own.repairs
        for name in ("unmatched", "silent", "doubts"):
            reasons: dict[str, str] = getattr(own, name)
            getattr(report, name).update({f"{session} by {member.name}": why for session, why in reasons.items()})
    for session, events in by_session.items():
        fusion = Fusion(recipe)
        fused = [e for event in events for e in fusion.push(event, 0)] + fusion.flush()
        report.matched += bool(fused)
        report.events += len(fused)
        report.unknown += sum(event.label == UNKNOWN for event in fused)
        if not fused:
            report.silent[session] = f"recipe {recipe.input[0].events}, whose windows they are, gave no event"
        emitted_ns = time.time_ns()
        yield from (replace(event, emitted_ns=emitted_ns) for event in fused)


def _check_classes(recipe: FusionRecipe, classifiers: Sequence[BatchClassifier]) -> None:
    first, *others = ((classifier.bundle.id, set(classifier.bundle.labels)) for classifier in classifiers)
    for bundle, labels in others:
        if not labels & first[1]:
            classes = [", ".join(sorted(some)) for some in (first[1], labels)]
            raise BundleError(
                f"recipe `{recipe.name}`: bundle {first[0]} tells {classes[0]}, {bundle} tells {classes[1]}; they have no class "
                "in common, so there is nothing to fuse"
            )
