"""The facts of a training run. In: what the trainer did. Out: one JSON text, from which the report is drawn; and from what a model
came: versions, and which recordings a bundle has learned from.

The record is written once, at the end of a run. Arrays stand as nested lists; a number that is not finite as null. Seconds are wall
time, memory is the process's largest resident size in MB (10**6 bytes). A manifest holds digests of sessions and subjects and not
their names, so that a bundle tells nobody who was recorded, only whether somebody was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kymo.models.bundle import Bundle
from kymo.models.data.examples import Dataset
from kymo.models.evaluate import Judgement
from kymo.models.registry.manifest import as_json
from kymo.models.scores import HeldOut
from kymo.streams.sessions import version_of

#: Where a manifest's lineage has the digests.
LEARNED = "learned"
_PACKAGES = ("kymo", "numpy", "scipy", "onnxruntime")


@dataclass(slots=True, eq=False)
class Candidate:
    name: str  # architecture, and in a search the number of the trial
    parameters: dict[str, Any] = field(default_factory=dict)  # all of its parameters
    # of the validation windows and recordings: :mod:`kymo.models.scores`
    scores: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)  # an entry an epoch
    seconds: float = 0.0  # wall time of the fit; the process's largest resident size so far
    peak_mb: float = 0.0
    chosen: bool = False  # whether it is the one that was bundled
    note: str = ""  # why it is out of the running, if it is: stopped early, failed


@dataclass(slots=True, eq=False)
class RunRecord:
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
    # of the validation side; empty where nothing was held out. See :mod:`kymo.models.scores`
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

    def to_json(self) -> str:
        """The record as JSON text that ends in a newline."""
        return json.dumps(as_json(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def cross_validation(split: Mapping[str, Any]) -> str:
    """A record's split in words where it is a cross-validation, else empty."""
    count = len(split.get("folds") or ())
    return f"a cross-validation of {count} folds by {split.get('kind')}" if count else ""


def revision() -> str:
    """The git commit of Kymo's own folder, empty where it is no checkout."""
    git = Path(__file__).resolve().parent.parent.parent / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        return (git / head[5:]).read_text().strip() if head.startswith("ref: ") else head
    except OSError:
        return ""


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Versions of what every model rests on, and of `packages`; None for one that is not installed."""
    return {name: version_of(name) or None for name in (*_PACKAGES, *packages)}


def name_digest(name: str) -> str:
    """16 hexadecimal digits of a session's or subject's name."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def learned_from(dataset: Dataset) -> dict[str, list[str]]:
    """For the lineage: digests of all sessions and subjects of a data set, held out for validation or not.

    Those held out have had a say, too: in when to stop, in which model to take, and where the model was refitted in its weights.
    """
    examples = dataset.examples
    return {
        "sessions": sorted({name_digest(example.session) for example in examples}),
        "subjects": sorted({name_digest(example.subject) for example in examples if example.subject}),
    }


def knows(bundle: Bundle, session: str, subject: str = "") -> bool | None:
    """Whether a bundle has learned from a session, or from another one of the subject if one is given; None if it does not say."""
    digests: dict[str, Any] | None = bundle.manifest.get("lineage", {}).get(LEARNED)
    if digests is None:
        return None
    return name_digest(session) in digests["sessions"] or bool(subject and name_digest(subject) in digests["subjects"])


def trained_on(judgement: Judgement) -> int:
    """How many of the recordings a bundle has learned from: of files that are as they were, or of an archive that has grown since."""
    bundle = judgement.bundle
    inputs = bundle.manifest.get("lineage", {}).get("inputs", [])
    checksums = {facts.get("path"): facts.get("sha256") for facts in inputs}
    same, count = set(checksums.values()), 0
    for path, facts in judgement.inputs.items():
        if facts["sha256"] in same:
            count += facts["recordings"]
        elif path in checksums:
            count += sum(bool(knows(bundle, session)) for session in judgement.sessions[path])
    return count
