"""Data sets. In: recordings and a recipe. Out: labelled windows, made by the chain that runs live.

Training, the gate, evaluation and `kymo run` all ask :func:`stream_of` which stream of a recording a recipe takes, so that what is judged
is what runs. A derived stream is what a chain made, never what a recipe takes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from kymo.models.data.examples import PLACE, Dataset, Example, asked_sets, bin_of, targets_of, truth_at
from kymo.models.lengths import lengths_of, widen
from kymo.processors.chain import Chain
from kymo.processors.recipe.load import Recipe
from kymo.streams.chunk import Window
from kymo.streams.errors import TrainingError
from kymo.streams.labels.labels import Cover, Label
from kymo.streams.recording import Recording, StreamData

_CHUNK_SAMPLES = 8192


def stream_of(recording: Recording, recipe: Recipe) -> StreamData | None:
    """Take the raw stream that matches; of several the one that begins first, as online."""
    streams = [stream for stream, why in verdicts_on(recording, recipe) if why is None]
    return min(streams, key=lambda stream: stream.start_ns, default=None)


def verdicts_on(recording: Recording, recipe: Recipe) -> list[tuple[StreamData, str | None]]:
    """List each raw stream, with why the recipe does not take it; None where it does."""
    return [(s, recipe.matches(s.header.format)) for s in recording.streams if not s.header.chain]


def stream_windows(stream: StreamData, chain: Chain) -> Iterator[Window]:
    """Send one stream through the chain's stages, window by window."""
    stage = chain.build()
    for chunk in stream.chunks(_CHUNK_SAMPLES):
        yield from stage.push(chunk)
    yield from stage.flush()


def windows_of(stream: StreamData, chain: Chain) -> list[Window]:
    return list(stream_windows(stream, chain))


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
        stream = stream_of(recording, recipe)
        if stream is None:
            dataset.notes[_why_not_taken(recording, recipe)] += 1
            continue
        widen(dataset.lengths, lengths_of(stream, recipe))
        dataset.longest_s = max(dataset.longest_s, stream.duration_s)
        checksum = thread.submit(add_input, dataset.inputs, recording, stream)
        known = (recording.session, recording.subject or "", recording.path, dict(recording.metadata))
        cover = Cover(labels)
        targets_at = targets_of(recording.labels, recipe.heads)
        for window in stream_windows(stream, chain):
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


def _why_not_taken(recording: Recording, recipe: Recipe) -> str:
    reasons = [why for _, why in verdicts_on(recording, recipe)]
    return f"recordings not taken: {reasons[0] if reasons else 'no raw stream'}"


def _check(dataset: Dataset, counts: Mapping[str, int], recipe: Recipe) -> None:
    if not counts.get("recordings"):
        raise TrainingError("the data holds no recording; name files or folders with --data")
    if not dataset.inputs:
        reason = next(note for note in dataset.notes if note.startswith("recordings not taken"))
        raise TrainingError(f"none of {counts['recordings']} recordings fits recipe `{recipe.name}`; {reason}")
    if not counts.get("windows"):
        length_s = float(recipe.window_length / recipe.inputs[0].rate_hz)
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


def add_input(inputs: dict[str, dict[str, Any]], recording: Recording, stream: StreamData) -> None:
    """Count a recording among the inputs of its path, and carry on their checksum of samples and labels."""
    labels = [(label.start_ns, label.end_ns, label.label) for label in recording.labels]
    digest = hashlib.sha256(repr((recording.session, stream.header, stream.first_index, labels)).encode())
    for first, samples in stream.pieces:
        digest.update(first.to_bytes(8, "little", signed=True))
        digest.update(np.ascontiguousarray(samples).data)
    entry = inputs.setdefault(recording.path, {"recordings": 0, "sha256": ""})
    entry["recordings"] += 1
    entry["sha256"] = hashlib.sha256((entry["sha256"] + digest.hexdigest()).encode()).hexdigest()
