"""Data sets. In: recordings and a recipe. Out: labelled windows, made by the chain that runs live."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from models.data.chosen import stream_of, verdicts_on
from models.data.split_groups import hold_out
from models.data.steps import apply_steps, fit_steps, split_chain, to_samples, with_steps
from models.data.targets import Targets, asked_sets, ordered, targets_of
from processors.chain import Chain
from processors.recipe.load import Recipe
from streams.chunk import Window
from streams.errors import TrainingError
from streams.labels.cover import Cover
from streams.labels.labels import Label
from streams.recording import Recording, StreamData

CHUNK_SAMPLES = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A window with its class."""

    window: Window
    label: str
    group: str  # what must stand on one side of a split: subject or session, as the recipe says
    session: str = ""  # whose; the second is empty where it is not known
    subject: str = ""
    recording: str = ""  # path that it was read from
    metadata: Mapping[str, str] = field(default_factory=dict)  # what else the recording says of itself
    # by name of a further head, its class or number; absent where it is not known
    targets: Targets = field(default_factory=dict)
    # for a stateful model: the windows of its session that follow each other without a gap, this one among them
    run: tuple[Window, ...] = ()


@dataclass(slots=True, eq=False)
class Dataset:
    """Labelled windows of many recordings."""

    examples: list[Example] = field(default_factory=list)  # in the order of the recordings, then of time
    # by path: number of ``recordings`` and ``sha256`` of their samples and labels
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    # what a user should know, with how often: repairs of the readers, windows without a label, streams not taken
    notes: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0  # of the recordings that the recipe takes, in seconds
    # windows without a label (theirs is empty), where the recipe's model is stateful: its state goes through them,
    # too
    unlabelled: list[Example] = field(default_factory=list)

    @property
    def labels(self) -> tuple[str, ...]:
        """Classes that occur, sorted; numbers by value."""
        return ordered(example.label for example in self.examples)

    def put(self, examples: Iterable[Example]) -> None:
        """Add windows with a label, and without one."""
        for example in examples:
            (self.examples if example.label else self.unlabelled).append(example)


def stream_windows(stream: StreamData, chain: Chain) -> Iterator[Window]:
    """Windows of one stream, one after the other, through the chain's stages."""
    stage = chain.build()
    for chunk in stream.chunks(CHUNK_SAMPLES):
        yield from stage.push(chunk)
    yield from stage.flush()


def windows_of(stream: StreamData, chain: Chain) -> list[Window]:
    """All windows of one stream, through the chain's stages."""
    return list(stream_windows(stream, chain))


def labels_of(recording: Recording, recipe: Recipe) -> list[Label]:
    """The labels that answer the recipe's question: those of the set that ``[labels]`` names."""
    return [label for label in recording.labels if label.set == recipe.labels.set]


def read_dataset(recordings: Iterable[Recording], recipe: Recipe, chain: Chain) -> Dataset:
    """Labelled windows of recordings, in memory; :func:`models.data.cache.build_dataset` keeps them on disk."""
    found = Dataset()
    with ThreadPoolExecutor(1) as beside:
        found.put(iter_examples(recordings, recipe, chain, found, beside))
    return found


def iter_examples(
    recordings: Iterable[Recording],
    recipe: Recipe,
    chain: Chain,
    found: Dataset,
    beside: Executor,
    on_progress: Callable[[int, int], None] = lambda recordings, windows: None,
) -> Iterator[Example]:
    """Labelled windows one by one, where the model is stateful the others too; what else is to know goes into `found`.

    Checksums are worked out by `beside` while windows are made: they take no interpreter. `on_progress` is told the
    numbers of recordings and of windows so far. Raises as :func:`read_dataset`, behind the last window.
    """
    seen: Counter[str] = Counter()
    asked = asked_sets(recipe)
    for recording in recordings:
        seen["recordings"] += 1
        labels = labels_of(recording, recipe)
        seen["labels"] += len(labels)
        if others := sum(label.set not in asked for label in recording.labels):
            found.notes["labels of another set left out"] += others
        found.notes.update(_placed(note, recording.session) for note in recording.notes)
        stream = stream_of(recording, recipe)
        if stream is None:
            found.notes[_why_not_taken(recording, recipe)] += 1
            continue
        found.longest_s = max(found.longest_s, stream.duration_s)
        checked = beside.submit(add_input, found.inputs, recording, stream)
        make, cover = _example_maker(recording, recipe), Cover(labels)
        for window in stream_windows(stream, chain):
            seen["windows"] += 1
            label = cover.label_of(window.start_ns, window.end_ns, recipe.labels.min_share)
            if label is None:
                found.notes["windows without a label left out"] += 1
                if recipe.stateful:
                    yield make(window, "")
                continue
            seen["examples"] += 1
            yield make(window, label)
        checked.result()
        on_progress(seen["recordings"], seen["windows"])
    _check_found(found, seen, recipe)


def _placed(note: str, session: str) -> str:
    """A reader's note, with the session where it names a place in its file."""
    return f"{session}: {note}" if re.search(r"\b(rows?|messages?) [\d,]+", note) else note


def _why_not_taken(recording: Recording, recipe: Recipe) -> str:
    reasons = [why for _, why in verdicts_on(recording, recipe)]
    return f"recordings not taken: {reasons[0] if reasons else 'no raw stream'}"


def _example_maker(recording: Recording, recipe: Recipe) -> Callable[[Window, str], Example]:
    """What makes Examples of one recording's windows."""
    kind, targets = recipe.train.split, targets_of(recording.labels, recipe.heads)
    subject, metadata = recording.subject or "", dict(recording.metadata)
    session, path = recording.session, recording.path

    def make(window: Window, label: str) -> Example:
        group, known = group_name(session, subject, window, kind), targets(window.start_ns, window.end_ns)
        return Example(window, label, group, session, subject, path, metadata, known)

    return make


def group_name(session: str, subject: str, window: Window, kind: str) -> str:
    """What must stand on one side of a split of this kind."""
    if kind == "window":
        return f"{session}/{window.start_index}"
    return subject or session if kind == "subject" else session


def _check_found(found: Dataset, seen: Mapping[str, int], recipe: Recipe) -> None:
    if not seen.get("recordings"):
        raise TrainingError("the data holds no recording; name files or folders with --data")
    if not found.inputs:
        reason = next(note for note in found.notes if note.startswith("recordings not taken"))
        raise TrainingError(f"none of {seen['recordings']} recordings fits recipe `{recipe.name}`; {reason}")
    if not seen.get("windows"):
        length_s = float(recipe.window_length / recipe.inputs[0].rate_hz)
        raise TrainingError(
            f"no window of {length_s:g} s fits into the recordings (the longest has {found.longest_s:g} s, gaps "
            f"included); shorten [window] length_s, or allow gaps with bridge_ms or max_missing in [[input]]"
        )
    source = f"key `{recipe.labels.key}` of a labels JSON" if recipe.labels.key else f"column `{recipe.labels.column}`"
    if not seen.get("labels"):
        raise TrainingError(f"no labels in the data ({source}); correct [labels], or add the labels")
    if not seen.get("examples"):
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


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the training and of the validation examples by their `group`; no group stands on both sides."""
    chosen = hold_out([example.group for example in examples], [example.label for example in examples], share, seed)
    validation = [i for i, example in enumerate(examples) if example.group in chosen]
    return [i for i, example in enumerate(examples) if example.group not in chosen], validation


def iter_windows(
    recordings: Iterable[Recording], recipe: Recipe, chain: Chain
) -> Iterator[tuple[Recording, list[Window]]]:
    """Each recording, with the labels that recipe and heads ask for, and its windows; none where no stream fits."""
    asked = asked_sets(recipe)
    for recording in recordings:
        stream = stream_of(recording, recipe)
        own = replace(recording, labels=[label for label in recording.labels if label.set in asked])
        yield own, windows_of(stream, chain) if stream is not None else []


__all__ = [
    "Dataset",
    "Example",
    "apply_steps",
    "fit_steps",
    "iter_examples",
    "iter_windows",
    "read_dataset",
    "split",
    "split_chain",
    "stream_of",
    "to_samples",
    "windows_of",
    "with_steps",
]
