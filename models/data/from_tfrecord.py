"""Windows in TFRecords, a file a subject, as `kymo dataset export --by subject` and `kymo prepare running` write them. In: folders, a
recipe. Out: Examples to learn from; classes and targets by the recipe's own label sets, as far as the records know them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kymo.models.data.examples import EVERY, Dataset, Example, bin_of, number_of
from kymo.models.data.tfrecord import read_records, tf_features
from kymo.processors.chain import Chain
from kymo.processors.recipe.load import Recipe
from kymo.processors.recipe.tables import HeadTable, LabelTable
from kymo.processors.spec import header_from_json
from kymo.streams.archive.format import is_archive
from kymo.streams.chunk import Header, Window
from kymo.streams.errors import SourceError, TrainingError
from kymo.streams.labels.labels import canonical, rename
from kymo.streams.readers.files import find
from kymo.streams.readers.keep import Keep

_ABOUT = "dataset.json"


def window_folders(paths: Iterable[str | Path]) -> list[Path]:
    """Folders with TFRecords of windows, a file a subject, among paths and below them; with recordings beside them they are refused."""
    found = {str(path): [] if "://" in str(path) else _windows_below(Path(path)) for path in paths}
    folders = list(dict.fromkeys(folder for places in found.values() for folder in places))
    for path, places in found.items() if folders else ():
        if other := _recording_in(path) if places else path:
            raise SourceError(
                f"stands beside {folders[0]}, which holds windows that were exported; learn from these or from recordings, and name "
                "them alone",
                other,
            )
    return folders


def _windows_below(path: Path) -> list[Path]:
    folders = [about.parent for about in sorted(path.rglob(_ABOUT))]
    return [folder for folder in folders if any(folder.glob("*.tfrecord"))]


def _recording_in(path: str) -> str:
    """The first file of a folder that a reader would read; empty for none."""
    try:
        return path if is_archive(Path(path)) else next(find([path])).path
    except SourceError:
        return ""


def read_windows(folders: Sequence[Path], recipe: Recipe, chain: Chain, dataset: Dataset) -> Iterator[Example]:
    """Labelled windows of TFRecords that a chain has made; what else is to know goes into `dataset`."""
    keep = Keep(recipe.source.keep) if recipe.source.keep else None
    labelled = 0
    for folder in folders:
        about = _about_of(folder, chain)
        borders = recipe.labels.bins if isinstance(recipe.labels.bins, tuple) else ()
        if (made := tuple(about.get("bins", ()))) and made != borders:
            raise TrainingError(
                f"{folder}: its classes are of [labels] bins = {list(made)}; take these, or export anew"
            )
        headers = [header_from_json(header) for header in about["headers"]]
        sets = {about["label"]: "label"} | {head["set"]: head["column"] for head in about["heads"]}
        dataset.inputs |= {entry["path"]: {k: v for k, v in entry.items() if k != "path"} for entry in about["inputs"]}
        for record in (record for path in sorted(folder.glob("*.tfrecord")) for record in read_records(path)):
            features = tf_features(record)
            texts = {name.removeprefix("meta_"): text for name, text in features.items() if name.startswith("meta_")}
            known = texts | {name: text for name, column in sets.items() if (text := _text(features[column]))}
            if keep is not None and not keep({name: [known.get(name, "")] for name in keep.columns})[0]:
                dataset.notes["windows that keep leaves out"] += 1
                continue
            example = _example(features, headers, known, recipe, () if made else borders)
            labelled += bool(example.label)
            if example.label or recipe.stateful:
                yield replace(example, metadata=texts)
            else:
                dataset.notes["windows without a label left out"] += 1
    if not labelled:
        raise TrainingError(f"no window in {folders[0]} has a label `{recipe.labels.set}`; correct [labels], or keep")


def _about_of(folder: Path, chain: Chain) -> dict[str, Any]:
    """Read what a folder says of its windows; they must be of this chain."""
    try:
        about: dict[str, Any] = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot be read ({error})", folder / _ABOUT) from None
    if about.get("by") != "subject":
        raise SourceError("its windows are split and have been learned from; export them with --by subject", folder)
    if about["chain"] != json.loads(json.dumps(chain.to_json())):
        raise TrainingError(
            f"{folder}: its windows come of other steps than those asked for; take the recipe that made them, or train from the "
            f"recordings"
        )
    return about


def _text(value: Any) -> str:
    """A feature as a column would have it; empty where it is not known."""
    if isinstance(value, str):
        return value
    number = float(value[0])
    return "" if math.isnan(number) else f"{number:.9g}"


def _example(
    features: Mapping[str, Any],
    headers: Sequence[Header],
    known: Mapping[str, str],
    recipe: Recipe,
    borders: Sequence[float],  # of classes that are numbers yet
) -> Example:
    start, end, start_ns, end_ns = (
        int(features[name][0]) for name in ("start_index", "end_index", "start_ns", "end_ns")
    )
    data = np.asarray(features["window"], np.float32).reshape([int(size) for size in features["shape"]])
    padded, absent = int(features["padded"][0]), tuple(str(features.get("absent", "")).split())
    header = headers[int(features["header"][0])]
    window = Window(header, start, end, start_ns, end_ns, data, padded=padded, absent=absent)
    targets = {head.name: _target(head, known) for head in recipe.heads if known.get(head.set)}
    names = (features["session"], features["subject"], features["path"])
    label = _class(recipe.labels, known)
    if not recipe.labels.classes:
        label = EVERY if targets else ""
    elif label and borders:
        label = bin_of(label, borders, features["session"])
    return Example(window, label, *names, {}, targets)


def _class(table: LabelTable | HeadTable, known: Mapping[str, str]) -> str:
    return rename(canonical(known.get(table.set, "")), table.names)


def _target(head: HeadTable, known: Mapping[str, str]) -> str | float:
    return _class(head, known) if head.kind == "classes" else number_of(known[head.set], head, "")
