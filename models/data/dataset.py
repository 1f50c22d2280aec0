"""Data sets. In: recordings and a recipe. Out: labelled windows, made by the chain that runs live.

Training, the gate, evaluation and `kymo run` all ask :func:`streams_of` which streams of a recording a recipe takes, and send them
through the chain as :func:`chunks_of` has them, so that what is judged is what runs. A derived stream is what a chain made, never what a
recipe takes.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np

from kymo.models.data.examples import PLACE, Dataset, Example, asked_sets, bin_of, targets_of, truth_at
from kymo.models.lengths import lengths_of, widen
from kymo.processors.chain import Chain, ChainStage
from kymo.processors.join import Join
from kymo.processors.recipe.load import Recipe
from kymo.streams.budget import BATCH
from kymo.streams.chunk import Chunk, Header, Window
from kymo.streams.errors import TrainingError
from kymo.streams.labels.labels import Cover, Label
from kymo.streams.recording import Recording, StreamData

_CHUNK_SAMPLES = 8192
_BATCH = 64  # of an irregular stream
_JUDGED = 64  # windows that are judged together
T = TypeVar("T")


def streams_of(recording: Recording, recipe: Recipe) -> list[StreamData]:
    """Take the raw streams that feed a recipe, one an input; of several that would the one that begins first, as online.

    None where the recording lacks one that the recipe requires.
    """
    streams: dict[str, StreamData] = {}
    for stream, why in sorted(_verdicts(recording, recipe), key=lambda verdict: verdict[0].start_ns):
        table = recipe.input_of(stream.header.format.stream)
        if why is None and table is not None:
            streams.setdefault(table.stream, stream)
    lacks = any(table.required and table.stream not in streams for table in recipe.inputs)
    return [] if lacks else [streams[table.stream] for table in recipe.inputs if table.stream in streams]


def why_not(recording: Recording, recipe: Recipe) -> str:
    verdicts = _verdicts(recording, recipe)
    reasons = [why for _, why in verdicts if why is not None]
    taken = [recipe.input_of(stream.header.format.stream) for stream, why in verdicts if why is None]
    missing = [f"`{table.stream}`" for table in recipe.inputs if table.required and table not in taken]
    if taken and missing:
        reasons.append(f"there is no {' and no '.join(missing)}, which the recipe requires")
    return "; ".join(reasons) or "it holds no raw stream"


def _verdicts(recording: Recording, recipe: Recipe) -> list[tuple[StreamData, str | None]]:
    """List each raw stream, with why the recipe does not take it; None where it does."""
    return [(s, recipe.matches(s.header.format)) for s in recording.streams if not s.header.chain]


def chunks_of(streams: Sequence[StreamData], chain: Chain, seconds: Fraction) -> Iterator[Chunk]:
    """Cut streams into chunks of a length in seconds, those of several by time; before them the end marks of inputs that are not there."""
    entry = chain.specs[0]
    taken = {entry.takes(stream.header.format.stream) for stream in streams} if isinstance(entry, Join) else ()
    for branch in entry.branches if isinstance(entry, Join) else ():
        if branch not in taken:
            fmt = branch.raw
            none = np.empty((0, *fmt.shape), fmt.array_dtype)
            yield Chunk(Header(streams[0].header.session, 0, fmt), 0, none, end=True)
    parts = []
    for stream in streams:
        fmt = stream.header.format
        samples = max(1, round(fmt.rate * seconds)) if fmt.rate else _BATCH
        # In no more bytes than may be judged together, as what they become on their way: images may grow much.
        parts.append(stream.chunks(max(1, min(samples, int(BATCH / chain.widest(fmt))))))
    yield from parts[0] if len(parts) == 1 else heapq.merge(*parts, key=lambda chunk: chunk.start_ns)


def iter_windows(streams: Sequence[StreamData], chain: Chain) -> Iterator[Window]:
    seconds = _CHUNK_SAMPLES / (max(stream.header.format.rate for stream in streams) or Fraction(1))
    yield from through(chain.build(), chunks_of(streams, chain, seconds))


def through(stage: ChainStage, chunks: Iterable[Chunk]) -> Iterator[Window]:
    """All that a session's stage makes of its chunks."""
    for chunk in chunks:
        yield from stage.push(chunk)
    yield from stage.flush()


def in_batches(
    items: Iterable[T], size_of: Callable[[T], int], most_bytes: int, most: int = 2**20
) -> Iterator[list[T]]:
    """What is worked on together: some, but no more than fit."""
    batch, size = list[T](), 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if len(batch) >= most or size >= most_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def judged_together(windows: Iterable[Window]) -> Iterator[list[Window]]:
    return in_batches(windows, lambda window: window.nbytes, BATCH, _JUDGED)


def labels_of(recording: Recording, recipe: Recipe) -> list[Label]:
    """Take the labels that answer the recipe's question: those of the set that ``[labels]`` names."""
    labels, borders = [label for label in recording.labels if label.set == recipe.labels.set], recipe.labels.bins
    if isinstance(borders, tuple):
        return [replace(label, label=bin_of(label.label, borders, recording.session)) for label in labels]
    return labels


def read_dataset(recordings: Iterable[Recording], recipe: Recipe, chain: Chain) -> Dataset:
    """Make the labelled windows of recordings in memory; :func:`kymo.models.data.cache.build_dataset` keeps them on disk."""
    dataset = Dataset()
    with ThreadPoolExecutor(1) as thread:
        dataset.put(iter_examples(recordings, recipe, chain, dataset, thread))
    return dataset


def iter_examples(
    recordings: Iterable[Recording],
    recipe: Recipe,
    chain: Chain,
    dataset: Dataset,
    thread: Executor,
    on_progress: Callable[[int, int], None] = lambda recordings, windows: None,
) -> Iterator[Example]:
    """Make labelled windows one by one, the others too where `dataset` or a stateful model wants them; what else is to know goes into it.

    Checksums are worked out by `thread` while windows are made: they take no interpreter. `on_progress` is told the
    numbers of recordings and of windows so far. Raises as :func:`read_dataset`, behind the last window.
    """
    counts: Counter[str] = Counter()
    sets = asked_sets(recipe)
    for recording in recordings:
        counts["recordings"] += 1
        labels = labels_of(recording, recipe)
        counts["labels"] += len(labels if recipe.labels.classes else recording.labels)
        if foreign := sum(label.set not in sets for label in recording.labels):
            dataset.notes["labels of another set left out"] += foreign
        dataset.notes.update(_placed(note, recording.session) for note in recording.notes)
        streams = streams_of(recording, recipe)
        if not streams:
            dataset.notes[f"recordings not taken: {why_not(recording, recipe)}"] += 1
            continue
        for stream in streams:
            widen(dataset.lengths, lengths_of(stream, recipe))
            dataset.longest_s = max(dataset.longest_s, stream.duration_s)
        checksum = thread.submit(add_input, dataset.inputs, recording, streams)
        known = (recording.session, recording.subject or "", recording.path, dict(recording.metadata))
        cover = Cover(labels)
        targets_at = targets_of(recording.labels, recipe.heads)
        for window in iter_windows(streams, chain):
            counts["windows"] += 1
            targets = targets_at(window.start_ns, window.end_ns)
            label = truth_at(recipe, cover, window.start_ns, window.end_ns, targets)
            if label is None:
                dataset.notes["windows without a label left out"] += 1
                if recipe.stateful or dataset.all_windows:
                    yield Example(window, "", *known, targets)
                continue
            counts["examples"] += 1
            yield Example(window, label, *known, targets)
        checksum.result()
        on_progress(counts["recordings"], counts["windows"])
    _check(dataset, counts, recipe)


def _placed(note: str, session: str) -> str:
    """Put the session before a reader's note that names a place in its file."""
    return f"{session}: {note}" if PLACE.search(note) else note


def _check(dataset: Dataset, counts: Mapping[str, int], recipe: Recipe) -> None:
    if not counts.get("recordings"):
        raise TrainingError("the data holds no recording; name files or folders with --data")
    if not dataset.inputs:
        reason = next(note for note in dataset.notes if note.startswith("recordings not taken"))
        raise TrainingError(f"none of {counts['recordings']} recordings fits recipe `{recipe.name}`; {reason}")
    if not counts.get("windows"):
        length_s = float(recipe.window_length / recipe.rate_hz)
        raise TrainingError(
            f"no window of {length_s:g} s fits into the recordings (the longest has {dataset.longest_s:g} s, gaps "
            f"included); shorten [window] length_s, or allow gaps with bridge_ms or max_missing in [[input]]"
        )
    if dataset.all_windows:
        return
    source = f"key `{recipe.labels.key}` of a labels JSON" if recipe.labels.key else f"column `{recipe.labels.column}`"
    if not counts.get("labels"):
        raise TrainingError(
            f"no labels in the data ({source}); correct [labels], or add the labels; where names of files or folders tell them, "
            "say so in [source] file_names"
        )
    if not counts.get("examples"):
        raise TrainingError(
            f"no window is covered by a label to {recipe.labels.min_share:.0%}; shorten [window] length_s or lower "
            f"[labels] min_share"
        )


def add_input(inputs: dict[str, dict[str, Any]], recording: Recording, streams: Sequence[StreamData]) -> None:
    """Count a recording among the inputs of its path, and carry on their checksum of samples and labels."""
    entry = inputs.setdefault(recording.path, {"recordings": 0, "sha256": ""})
    entry["recordings"] += 1
    for stream in streams:
        entry["sha256"] = _carry_on(entry["sha256"], recording, stream)


def _carry_on(checksum: str, recording: Recording, stream: StreamData) -> str:
    labels = [(label.start_ns, label.end_ns, label.label) for label in recording.labels]
    digest = hashlib.sha256(repr((recording.session, stream.header, stream.first_index, labels)).encode())
    for first, samples in stream.pieces:
        digest.update(first.to_bytes(8, "little", signed=True))
        for part in map(bytes, samples) if samples.dtype.hasobject else [np.ascontiguousarray(samples).data]:
            digest.update(part)
    if stream.times_ns is not None:
        digest.update(np.ascontiguousarray(stream.times_ns).data)
    return hashlib.sha256((checksum + digest.hexdigest()).encode()).hexdigest()
