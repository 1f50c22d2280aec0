"""Data sets. In: recordings and a recipe. Out: labelled windows, made by the chain that runs live, and their split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from models.bundle import input_shape
from models.zoo import Samples
from processors.chain import Chain, PerWindow
from processors.recipe import Recipe
from processors.spec import Spec
from streams.chunk import Window
from streams.errors import TrainingError
from streams.recording import Recording, StreamData

CHUNK_SAMPLES = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A window with its class.

    Attributes
    ----------
    window : Window
        The window.
    label : str
        Its class.
    group : str
        What must stand on one side of a split: subject or session, as the recipe says.
    """

    window: Window
    label: str
    group: str


@dataclass(slots=True, eq=False)
class Dataset:
    """Labelled windows of many recordings.

    Attributes
    ----------
    examples : list of Example
        In the order of the recordings, then of time.
    inputs : dict of str to dict
        By path: number of ``recordings`` and ``sha256`` of their samples and labels.
    notes : Counter
        What a user should know, with how often: repairs of the readers, windows without a label, streams not taken.
    longest_s : float
        Of the recordings that the recipe takes, in seconds.
    """

    examples: list[Example] = field(default_factory=list)
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0

    @property
    def labels(self) -> tuple[str, ...]:
        """Classes that occur, sorted; numbers by value."""
        return tuple(sorted({example.label for example in self.examples}, key=_label_order))


def _label_order(label: str) -> tuple[bool, float, str]:
    try:
        return (False, float(label), label)
    except ValueError:
        return (True, 0.0, label)


def stream_of(recording: Recording, recipe: Recipe) -> StreamData | None:
    """The stream that a recipe takes of a recording: the first that matches, as a worker does."""
    return next((s for s in recording.streams if recipe.matches(s.header.format) is None), None)


def windows_of(stream: StreamData, chain: Chain) -> list[Window]:
    """All windows of one stream, through the chain's stages."""
    stage = chain.build()
    windows: list[Window] = [window for chunk in stream.chunks(CHUNK_SAMPLES) for window in stage.push(chunk)]
    return windows + stage.flush()


def read_dataset(recordings: Iterable[Recording], recipe: Recipe, chain: Chain) -> Dataset:
    """Labelled windows of recordings.

    Parameters
    ----------
    recordings : iterable of Recording
        Read one at a time.
    recipe : Recipe
        Says which stream, which labels and which split.
    chain : Chain
        To run; the recipe's, up to where it must learn.

    Raises
    ------
    TrainingError
        If there is nothing to learn from; the text says what to change.
    """
    found = Dataset()
    seen: Counter[str] = Counter()
    for recording in recordings:
        seen["recordings"] += 1
        seen["labels"] += len(recording.labels)
        found.notes.update(recording.notes)
        stream = stream_of(recording, recipe)
        if stream is None:
            reasons = [recipe.matches(s.header.format) for s in recording.streams]
            found.notes[f"recordings not taken: {reasons[0] if reasons else 'no stream'}"] += 1
            continue
        found.longest_s = max(found.longest_s, stream.duration_s)
        _add_input(found.inputs, recording, stream)
        windows = windows_of(stream, chain)
        seen["windows"] += len(windows)
        group = (recording.subject or recording.session) if recipe.train.split == "subject" else recording.session
        for window in windows:
            label = recording.label_of(window.start_ns, window.end_ns, recipe.labels.min_share)
            if label is None:
                found.notes["windows without a label left out"] += 1
                continue
            own = f"{group}/{window.start_index}" if recipe.train.split == "window" else group
            found.examples.append(Example(window, label, own))
    _check_found(found, seen, recipe)
    return found


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
            f"included); shorten [window] length_s"
        )
    source = f"key `{recipe.labels.key}` of a labels JSON" if recipe.labels.key else f"column `{recipe.labels.column}`"
    if not seen.get("labels"):
        raise TrainingError(f"no labels in the data ({source}); correct [labels], or add the labels")
    if not found.examples:
        raise TrainingError(
            f"no window is covered by a label to {recipe.labels.min_share:.0%}; shorten [window] length_s or lower "
            f"[labels] min_share"
        )


def _add_input(inputs: dict[str, dict[str, Any]], recording: Recording, stream: StreamData) -> None:
    labels = [(label.start_ns, label.end_ns, label.label) for label in recording.labels]
    digest = hashlib.sha256(repr((recording.session, stream.header, stream.first_index, labels)).encode())
    for first, samples in stream.pieces:
        digest.update(first.to_bytes(8, "little", signed=True) + np.ascontiguousarray(samples).tobytes())
    entry = inputs.setdefault(recording.path, {"recordings": 0, "sha256": ""})
    entry["recordings"] += 1
    entry["sha256"] = hashlib.sha256((entry["sha256"] + digest.hexdigest()).encode()).hexdigest()


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the training and of the validation examples; no group stands on both sides.

    Groups are taken one by one, each the one that brings the validation's count of every class nearest to its share,
    as long as every class stays in training.

    Parameters
    ----------
    examples : sequence of Example
        What to split.
    share : float
        Of each class's examples, 0 to below 1, for validation; 0 for none.
    seed : int
        Decides between groups that are equally good.

    Returns
    -------
    training, validation : list of int
        The second is empty where `share` is 0 or no group can be spared.
    """
    classes = sorted({example.label for example in examples})
    counts: dict[str, Counter[str]] = {}
    for example in examples:
        counts.setdefault(example.group, Counter())[example.label] += 1
    names = sorted(counts)
    np.random.default_rng(seed).shuffle(names)
    left = {name: np.array([counts[name][c] for c in classes], float) for name in names}
    total = np.sum(list(left.values()), axis=0)
    taken = np.zeros(len(classes))
    chosen: set[str] = set()
    while share and left:
        able = [name for name, count in left.items() if (taken + count < total).all()]
        if not able:
            break
        # In shares of each class, so that rare ones count as much as frequent ones.
        distance = {name: float(np.sum(((taken + left[name]) / total - share) ** 2)) for name in able}
        best = min(able, key=lambda name: distance[name])
        if chosen and distance[best] >= np.sum((taken / total - share) ** 2):
            break
        taken = taken + left.pop(best)
        chosen.add(best)
    validation = [i for i, example in enumerate(examples) if example.group in chosen]
    return [i for i, example in enumerate(examples) if example.group not in chosen], validation


def split_chain(chain: Chain) -> tuple[Chain, tuple[Spec, ...]]:
    """A chain up to its first step that learns, and the steps from there on."""
    at = next((i for i, spec in enumerate(chain.specs) if _learns(spec)), len(chain.specs))
    return Chain(chain.specs[:at]), chain.specs[at:]


def _learns(spec: Spec) -> bool:
    return bool((spec.spec if isinstance(spec, PerWindow) else spec).learned)


def fit_steps(steps: Sequence[Spec], windows: Sequence[Window]) -> tuple[Spec, ...]:
    """Steps that have learned their numbers, each from what the ones before it make of `windows`."""
    fitted: list[Spec] = []
    for step in steps:
        fitted.append(_fit(step, windows))
        windows = apply_steps(fitted[-1:], windows)
    return tuple(fitted)


def _fit(step: Spec, windows: Sequence[Window]) -> Spec:
    if not isinstance(step, PerWindow) or not _learns(step):
        return step
    learner: Any = step.spec
    return replace(step, spec=learner.fit(windows))


def apply_steps(steps: Sequence[Spec], windows: Sequence[Window]) -> list[Window]:
    """Windows behind per-window steps."""
    out = list(windows)
    for step in steps:
        stage = step.build()
        out = [made for window in out for made in stage.push(window)]
    return out


def to_samples(examples: Sequence[Example], labels: Sequence[str], layout: str) -> Samples:
    """Arrays of examples as a model takes them.

    Raises
    ------
    TrainingError
        If a window holds a number that is not finite.
    """
    number = {label: i for i, label in enumerate(labels)}
    first = examples[0].window.data
    windows = np.empty((len(examples), *input_shape(first.shape, layout)), np.float32)
    for i, example in enumerate(examples):
        data = example.window.data
        windows[i] = np.moveaxis(data, -1, 0) if layout == "channels_first" else data
        if not np.isfinite(windows[i]).all():
            raise TrainingError(
                f"session {example.window.session}, window from sample {example.window.start_index}: a number is not "
                f"finite behind the chain; look at its steps (a logarithm of 0 needs `eps`)"
            )
    return Samples(windows, np.array([number[example.label] for example in examples], np.int64))


def iter_windows(
    recordings: Iterable[Recording], recipe: Recipe, chain: Chain
) -> Iterator[tuple[Recording, list[Window]]]:
    """Each recording with its windows; none where no stream fits the recipe."""
    for recording in recordings:
        stream = stream_of(recording, recipe)
        yield recording, windows_of(stream, chain) if stream is not None else []
