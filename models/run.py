"""The chain and the classifier without a broker. In: recordings. Out: Events in order, equal to the online ones.

Every session runs through a Stage of its own, chunk by chunk, and is flushed at its end. Only `emitted_ns` (wall time,
ns) differs from what a worker publishes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain

from kymo.models.bundle import UNKNOWN
from kymo.models.data.dataset import chunks_of, judged_together, streams_of, through, why_not
from kymo.models.lengths import doubt
from kymo.models.predict import BatchClassifier, Memory, Predictor
from kymo.processors.recipe.fusion import FusionRecipe
from kymo.processors.recipe.load import Recipe
from kymo.streams.errors import KymoError
from kymo.streams.events import Event
from kymo.streams.recording import Recording, StreamData
from kymo.streams.words import NS, many

CHUNK_MS = 100


@dataclass
class Report:
    """What a run noticed.

    Attributes
    ----------
    recordings, matched : int
        Sessions read; those with a stream that the recipe takes.
    events, unknown : int
        Given; of those the ones below `min_probability`.
    counts : Counter
        By name, as a worker counts them: samples, gaps, interpolated, duplicates, late, unmatched streams, …
    unmatched : dict of str
        By session, why the recipe takes none of its streams.
    silent : dict of str
        By session that matched, why it gave no window.
    repairs : dict of list of str
        By session, the reader's notes.
    doubts : dict of str
        By session, why it is unlike all that the model learned from.
    """

    recordings: int = 0
    matched: int = 0
    events: int = 0
    unknown: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    unmatched: dict[str, str] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    repairs: dict[str, list[str]] = field(default_factory=dict)
    doubts: dict[str, str] = field(default_factory=dict)


def run(
    recipe: Recipe,
    recordings: Iterable[Recording],
    classifier: BatchClassifier,
    chunk_ms: int = CHUNK_MS,
    report: Report | None = None,
) -> Iterator[Event]:
    """Classify recordings.

    Parameters
    ----------
    recipe, recordings : Recipe, iterable of Recording
        What says which stream is taken, and one recording a session.
    classifier : BatchClassifier
        With the bundle whose chain is run.
    chunk_ms : int
        Length of the chunks, ms, at least 1; the events do not depend on it.
    report : Report, optional
        Filled while the run goes on.

    Yields
    ------
    Event
        Session by session, by start.

    Raises
    ------
    KymoError
        If the bundle does not fit the recipe, or a file cannot be read as it stands.
    """
    classifier.bundle.check(recipe)
    report = report if report is not None else Report()
    predictor = Predictor(classifier, recipe)
    for recording in _once(recordings, report):
        streams = streams_of(recording, recipe)
        report.counts["unmatched"] += len(recording.streams) - len(streams)
        if not streams:
            report.unmatched[recording.session] = why_not(recording, recipe)
        else:
            report.matched += 1
            if why := "; ".join(filter(None, (doubt(classifier.bundle.lengths, s, recipe) for s in streams))):
                report.doubts[recording.session] = why
            yield from _session(recipe, streams, predictor, chunk_ms, report)


def _once(recordings: Iterable[Recording], report: Report) -> Iterator[Recording]:
    """Recordings whose session did not come before: the windows of another would have the same ids."""
    sessions: set[str] = set()
    for recording in recordings:
        report.recordings += 1
        if recording.session in sessions:
            report.silent[recording.session] = "the session came again; only the first recording of it is run"
            continue
        sessions.add(recording.session)
        if recording.notes:
            report.repairs[recording.session] = list(recording.notes)
        yield recording


def _why_silent(recipe: Recipe, streams: Sequence[StreamData], with_gaps: int = 0) -> str:
    """Why streams that the recipe takes have no window."""
    length, rate, stream = recipe.window_length, float(recipe.rate_hz), streams[0]
    if len(streams) > 1:
        # An irregular one may be silent at either end.
        compared = [s for s in streams if s.header.format.rate] or streams
        tables = [recipe.input_of(s.header.format.stream) for s in compared]
        moves = [round(table.offset_ms * 10**6) if table else 0 for table in tables]
        start_ns = max(s.start_ns + move for s, move in zip(compared, moves, strict=True))
        end_ns = min(s.end_ns + move for s, move in zip(compared, moves, strict=True))
        spans = ", ".join(f"{s.header.format.stream} {s.duration_s:g} s" for s in compared)
        if (end_ns - start_ns) / NS < length / rate:
            return (
                f"its streams ({spans}) have {max(end_ns - start_ns, 0) / NS:g} s in common, less than a window of {length / rate:g} s; "
                "look at their times, and at offset_ms of [[input]]"
            )
    elif recipe.join is None and stream.end_index - stream.first_index < length:
        return (
            f"it holds {stream.count} samples ({stream.count / rate:g} s), fewer than a window of {length} "
            f"({length / rate:g} s); shorten [window] length_s"
        )
    elif stream.duration_s < length / rate:
        return f"it is {stream.duration_s:g} s long, shorter than a window of {length / rate:g} s; shorten [window] length_s"
    cut = f"{with_gaps} windows left out for too many missing samples" if with_gaps else "gaps cut every window"
    gaps = many(sum(len(s.pieces) - 1 for s in streams), "gap")
    return f"{cut} ({gaps}); see bridge_ms and max_missing of [[input]]"


def _session(
    recipe: Recipe, streams: Sequence[StreamData], predictor: Predictor, chunk_ms: int, report: Report
) -> Iterator[Event]:
    before = report.events
    stage = predictor.bundle.chain.build()
    memory: Memory = []
    chunks = chunks_of(streams, predictor.bundle.chain, Fraction(chunk_ms, 1000))
    for windows in judged_together(through(stage, chunks)):
        predicted = predictor.predict(windows, [memory] * len(windows))
        emitted_ns = time.time_ns()
        for event in chain.from_iterable(predicted):
            report.events += 1
            report.unknown += event.label == UNKNOWN
            yield replace(event, emitted_ns=emitted_ns)
    counts = stage.take_counts()
    report.counts.update(counts, samples=sum(stream.count for stream in streams))
    if report.events == before:
        report.silent[streams[0].header.session] = _why_silent(recipe, streams, counts["windows_with_gaps"])


def check_matched(recipe: Recipe | FusionRecipe, report: Report) -> None:
    if report.recordings and not report.matched:
        session, why = next(iter(report.unmatched.items()))
        more = f" (and {report.recordings - 1} more)" if report.recordings > 1 else ""
        raise KymoError(f"no recording is what recipe `{recipe.name}` takes: {session}: {why}{more}")
