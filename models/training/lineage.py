"""Where a model came from. In: what a training run read, fitted and chose; recordings. Out: a bundle's manifest, and the run's
record; which of the recordings a bundle has learned from.

A manifest holds digests of sessions and subjects and not their names, so that a bundle tells nobody who was recorded, only
whether somebody was.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kymo.models.bundle import Bundle
from kymo.models.data.dataset import add_input, stream_of
from kymo.models.data.examples import Dataset, Example
from kymo.models.data.splits import group_of, session_of
from kymo.models.pooling import Pool
from kymo.models.scores import BRIEF, short_scores
from kymo.models.training.export import INPUT, OUTPUT, Exported
from kymo.models.training.fit_and_judge import FittedModel
from kymo.models.training.request import TrainRequest
from kymo.models.zoo import architecture
from kymo.processors.recipe.load import Recipe
from kymo.streams.recording import Recording

#: Where a manifest's lineage has the digests.
LEARNED = "learned"
_PACKAGES = ("kymo", "numpy", "scipy", "onnxruntime")


def manifest_of(
    recipe: Recipe,
    final: FittedModel,
    winner: FittedModel,
    exported: Exported,
    pool: Pool | None,
    lineage: Mapping[str, Any],
) -> dict[str, Any]:
    """A bundle's manifest: of the model `final`, with the scores of `winner`, which learned from the training side."""
    model: dict[str, Any] = {
        "input": INPUT,
        "output": OUTPUT,
        "shape": list(exported.shape),
        "dtype": "float32",
        "layout": final.model.layout,
    }
    if exported.state:
        model["state"] = exported.state
    if final.data.takes != "chain":
        model["takes"] = final.data.takes
    manifest: dict[str, Any] = {
        "recipe": recipe.name,
        "architecture": {"name": final.plan.architecture, "parameters": final.model.parameters},
        "model": model,
        "labels": list(final.data.labels),
        "temperature": winner.temperatures[0],
        "batch": exported.batch,
        "chain": final.data.chain.to_json(),
        "scores": {key: winner.scores[key] for key in BRIEF if key in winner.scores},
        "lineage": dict(lineage),
    }
    if isinstance(recipe.labels.bins, tuple):
        manifest["bins"] = list(recipe.labels.bins)
    if heads := final.data.heads:
        temperatures = zip(heads, winner.temperatures[1:], strict=True)
        manifest["heads"] = [{"name": h.name, "labels": list(h.labels), "temperature": t} for h, t in temperatures]
        manifest["scores"] |= {"heads": short_scores(winner.scores["heads"])} if winner.scores else {}
    return manifest | ({"pool": pool.to_json()} if pool else {})


def lineage_of(recipe: Recipe, request: TrainRequest, dataset: Dataset, winner: FittedModel) -> dict[str, Any]:
    """What a bundle's model was made of; the same for equal runs."""
    settings, data = winner.plan.settings, winner.data
    packages = architecture(winner.plan.architecture).packages
    folds = {"folds": len(winner.folds)} if winner.folds else {}
    return {
        "command": _command(recipe, request, settings["seed"]),
        "chain": recipe.chain.digest(learned=False),
        "train": {**settings, "split": recipe.train.kind, "balance": recipe.train.balance, **folds},
        "inputs": [{"path": path, **facts} for path, facts in dataset.inputs.items()],
        **({"without": sorted(request.without)} if request.without else {}),
        "windows": {"training": len(data.split.training), "validation": len(data.split.validation)},
        "validation_groups": sorted({group_of(example, data.split.kind) for example in data.validation}),
        "packages": versions(packages),
        "python": platform.python_version(),
    }


def _command(recipe: Recipe, request: TrainRequest, seed: int) -> str:
    name = str(recipe.path.with_suffix("").name) if recipe.path else recipe.name
    data = "".join(f" --data {path}" for path in request.paths)
    epochs = f" --epochs {request.epochs}" if request.epochs is not None else ""
    only = " --only" if request.only else ""
    search = f" --search {request.search_minutes:g}" if request.search_minutes else ""
    return f"kymo train {name}{data}{epochs} --seed {seed}{only}{search}"


def split_of(winner: FittedModel) -> dict[str, Any]:
    """What stands on each side, for the record."""
    split = winner.data.split
    sides = {
        "training": (split.training_groups, winner.data.training, len(split.training)),
        "validation": (split.validation_groups, winner.data.validation, len(split.validation)),
    }
    return {
        "kind": split.kind,
        "seed": split.seed,
        **({"folds": winner.folds} if winner.folds else {}),
        **{name: _side(groups, examples, count) for name, (groups, examples, count) in sides.items()},
    }


def _side(groups: Sequence[str], examples: Sequence[Example], count: int) -> dict[str, Any]:
    return {"windows": count, "groups": list(groups), "labels": dict(Counter(example.label for example in examples))}


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
    return {name: _version(name) for name in (*_PACKAGES, *packages)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def name_digest(name: str) -> str:
    """16 hexadecimal digits of a session's or subject's name."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def learned_from(dataset: Dataset) -> dict[str, list[str]]:
    """For the lineage: digests of all sessions and subjects of a data set, held out for validation or not.

    Those held out have had a say, too: in when to stop, in which model to take, and where the model was refitted in its weights.
    """
    examples = dataset.examples
    return {
        "sessions": sorted({name_digest(session_of(example)) for example in examples}),
        "subjects": sorted({name_digest(example.subject) for example in examples if example.subject}),
    }


def knows(bundle: Bundle, session: str, subject: str = "") -> bool | None:
    """Whether a bundle has learned from a session, or from another one of the subject if one is given; None if it does not say."""
    digests: dict[str, Any] | None = bundle.manifest.get("lineage", {}).get(LEARNED)
    if digests is None:
        return None
    return name_digest(session) in digests["sessions"] or bool(subject and name_digest(subject) in digests["subjects"])


class TrainingOverlap:
    """Lets recordings through, and says how many of them a bundle was trained on."""

    def __init__(self, bundle: Bundle, recipe: Recipe) -> None:
        self._bundle, self._recipe = bundle, recipe
        self._inputs: dict[str, dict[str, Any]] = {}
        self._sessions: dict[str, int] = {}  # by path, sessions of a name that the bundle has learned from

    def through(self, recordings: Iterable[Recording]) -> Iterator[Recording]:
        """The recordings, as they are."""
        for recording in recordings:
            stream = stream_of(recording, self._recipe)
            if stream is not None:
                add_input(self._inputs, recording, stream)
                known = bool(knows(self._bundle, recording.session))
                self._sessions[recording.path] = self._sessions.get(recording.path, 0) + known
            yield recording

    @property
    def count(self) -> int:
        """Recordings that the bundle was trained on: of files that are as they were, or of an archive that has grown since."""
        inputs = self._bundle.manifest.get("lineage", {}).get("inputs", [])
        checksums = {facts.get("path"): facts.get("sha256") for facts in inputs}
        same = set(checksums.values())
        return sum(
            facts["recordings"] if facts["sha256"] in same else self._sessions[path] if path in checksums else 0
            for path, facts in self._inputs.items()
        )

    @property
    def recordings(self) -> int:
        """All that the recipe takes."""
        return sum(facts["recordings"] for facts in self._inputs.values())

    def note(self) -> str:
        """One line about it; empty where there is nothing to say."""
        if not self.count:
            return ""
        return (
            f"{self._bundle.id} was trained on {self.count} of these {self.recordings} recordings: "
            "the scores do not say how it does on new ones"
        )
