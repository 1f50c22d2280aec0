"""The facts of a training run. In: what the trainer did. Out: one JSON text, from which the report is drawn.

Written once, at the end of a run. Arrays stand as nested lists; a number that is not finite as null. Seconds are wall
time, memory is the process's largest resident size in MB (10**6 bytes).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from kymo.streams.chunk import Array
from kymo.streams.errors import MessageError, TrainingError
from kymo.streams.messages import MAX_FILE_BYTES, read_object


@dataclass(slots=True, eq=False)
class HeldHead:
    """What the model said of the validation windows in a further head."""

    name: str
    labels: list[str]  # its classes; empty for a number
    truth: Array  # ``(n,)``: int64 numbers of the labels (-1: not known), or float64 (NaN: not known)
    said: Array  # ``(n, labels)`` probabilities, or ``(n,)`` numbers in the head's own unit (NaN: none)

    @classmethod
    def from_plain(cls, facts: Mapping[str, Any]) -> HeldHead:
        """Of a record's JSON, where null stands for NaN."""
        kind = np.int64 if facts["labels"] else np.float64
        truth, said = np.array(facts["truth"], kind), np.array(facts["said"], np.float64)
        shape = (len(truth), len(facts["labels"])) if facts["labels"] else (len(truth),)
        return cls(facts["name"], list(facts["labels"]), truth, said.reshape(shape))


@dataclass(slots=True, eq=False)
class HeldOut:
    """The validation windows, in order, with what the model said of them."""

    labels: list[str] = field(default_factory=list)  # columns of `probabilities`
    y_true: Array = field(default_factory=lambda: np.zeros(0, np.int64))  # ``(n,)``, numbers of the labels
    # ``(n, labels)``, as an event would carry them
    probabilities: Array = field(default_factory=lambda: np.zeros((0, 0)))
    sessions: list[str] = field(default_factory=list)  # ``n`` each; a subject is empty where it is not known
    subjects: list[str] = field(default_factory=list)
    # ``(n,)``, raw samples from the session's index 0
    start_index: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    heads: list[HeldHead] = field(default_factory=list)  # what was said in further heads


@dataclass(slots=True, eq=False)
class Candidate:
    """One model that was fitted on the training side."""

    name: str  # architecture, and in a search the number of the trial
    parameters: dict[str, Any] = field(default_factory=dict)  # all of its parameters
    # of the validation windows and recordings: :func:`kymo.models.evaluate.score_windows`
    scores: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)  # an entry an epoch
    seconds: float = 0.0  # wall time of the fit; the process's largest resident size so far
    peak_mb: float = 0.0
    chosen: bool = False  # whether it is the one that was bundled
    note: str = ""  # why it is out of the running, if it is: stopped early, failed


@dataclass(slots=True, eq=False)
class RunRecord:
    """A training run."""

    recipe: str  # the recipe's name
    recipe_text: str = ""  # its TOML, empty where it came from no file
    architecture: str = ""  # what was bundled
    parameters: dict[str, Any] = field(default_factory=dict)  # of the architecture
    training: dict[str, Any] = field(default_factory=dict)  # ``[train]`` with its defaults filled in
    # an entry an epoch: ``epoch``, ``loss`` and, with validation, ``validation_loss`` and ``validation_accuracy``
    history: list[dict[str, float]] = field(default_factory=list)
    # ``kind``, ``seed``; of ``training`` and ``validation`` each ``windows`` (a count), ``groups`` (names) and
    # ``labels`` (windows by class). Of a cross-validation all windows stand on both sides, and ``folds`` is a list:
    # the ``groups`` that each holds out, windows to learn from (``training``) and to stop by (``validation``),
    # ``epochs`` and scores
    split: dict[str, Any] = field(default_factory=dict)
    # of the validation side; empty where nothing was held out. See :func:`kymo.models.evaluate.score_windows`; ``heads``:
    # by further head its own
    scores: dict[str, Any] = field(default_factory=dict)
    held_out: HeldOut = field(default_factory=HeldOut)  # the validation windows one by one
    candidates: list[Candidate] = field(default_factory=list)  # all that were compared, the chosen one among them
    choice: str = ""  # which was bundled, and why, in a sentence
    # ``command``, ``inputs`` (path, recordings, sha256), ``packages``, ``python``, ``seed``, ``revision``
    lineage: dict[str, Any] = field(default_factory=dict)
    pooling: dict[str, Any] = field(default_factory=dict)  # ``[model] pool`` as it stands in the bundle; empty without
    notes: list[str] = field(default_factory=list)  # what a user should know
    seconds: float = 0.0  # of the whole run. They differ between equal runs, as do those of the candidates
    peak_mb: float = 0.0

    @property
    def numbers_alone(self) -> bool:
        """Whether the recipe has no classes, a regression alone."""
        return len(self.held_out.labels) == 1 and bool(self.held_out.heads)

    def to_json(self) -> str:
        """The record as JSON text that ends in a newline."""
        return json.dumps(_plain(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> RunRecord:
        """The record that a text holds."""
        try:
            facts = read_object(text, MAX_FILE_BYTES)
            held, candidates = facts.pop("held_out"), facts.pop("candidates")
            kinds = {"y_true": np.int64, "probabilities": np.float64, "start_index": np.int64}
            held |= {name: np.array(held[name], kind) for name, kind in kinds.items()}
            held["heads"] = [HeldHead.from_plain(head) for head in held.get("heads", [])]
            if not len(held["y_true"]):
                held["probabilities"] = held["probabilities"].reshape(0, len(held["labels"]))
            return cls(
                **facts, held_out=HeldOut(**held), candidates=[Candidate(**candidate) for candidate in candidates]
            )
        except (MessageError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise TrainingError(f"no record of a training run ({error}); train again") from None


def cross_validation(split: Mapping[str, Any]) -> str:
    """A record's split in words where it is a cross-validation, else empty.

    Examples
    --------
    >>> cross_validation({"kind": "subject", "folds": [{}, {}, {}]})
    'a cross-validation of 3 folds by subject'
    """
    count = len(split.get("folds") or ())
    return f"a cross-validation of {count} folds by {split.get('kind')}" if count else ""


def _plain(value: Any) -> Any:
    """Dataclasses, arrays and numpy's numbers as JSON has them."""
    if isinstance(value, RunRecord | HeldOut | HeldHead | Candidate):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
