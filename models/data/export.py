"""Windows for other programs. In: a recipe's Dataset. Out: a folder with TFRecord, Parquet or CSV files, float32.

::

    training.*, validation.*   a record a window: window, shape, label, class, session, subject, start and end, and
                               target_NAME of each further head: its class or number
    dataset.json               shape, channels, classes, heads, split, the chain with its learned numbers, checksums of the inputs

A window is as the trainer sees it: behind the whole chain, with what was learned from the training side, values in C order of
``(time, …, channels)``. Windows that a split leaves out are on neither side. What is not known of a head is an empty text or
NaN in TFRecord, null in Parquet, an empty cell in CSV. Of a recipe that joins several inputs, ``absent`` names those that are missing
somewhere in a window.

Or a file a subject, ``SUBJECT.*``: then nothing is split, nothing has learned, windows without a label are there too (class -1),
and TFRecords hold what else is known of a recording as ``meta_NAME``; what is missing is NaN, as `mask` stands behind what learns. These
TFRecords can be trained from: see :mod:`kymo.models.data.tfrecord`.
"""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.models.data.dataset import in_batches
from kymo.models.data.examples import Dataset, Example, classes_of, settle_bins
from kymo.models.data.samples import fit_steps, split_chain, with_steps
from kymo.models.data.splits import check_leaks, make_split
from kymo.models.data.tfrecord import ABOUT, tf_example, tfrecord
from kymo.processors.chain import Chain
from kymo.processors.recipe.load import Recipe
from kymo.processors.spec import Spec, header_to_json
from kymo.streams.chunk import Header
from kymo.streams.errors import TrainingError

_Rows = Iterator[dict[str, Any]]
_SIDES = ("training", "validation")
_BATCH_BYTES = 16 * 2**20


def export_dataset(
    recipe: Recipe,
    dataset: Dataset,
    fmt: str,
    out: Path,
    on_window: Callable[[], None] = lambda: None,
    by_subject: bool = False,  # a file a subject, before anything learns
) -> dict[str, Any]:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} is there and not empty; name a new folder")
    if by_subject:  # numbers whose borders are left to the data stay numbers
        steps: tuple[Spec, ...] = ()
        chain, borders = split_chain(recipe.chain)[0], recipe.labels.bins
        subjects: dict[str, list[Example]] = {}
        for example in (*dataset.examples, *dataset.unlabelled):
            subjects.setdefault(re.sub(r"[^\w.-]+", "_", example.subject) or "unknown", []).append(example)
        sides = dict(sorted(subjects.items()))
        known = {"by": "subject", "bins": list(borders) if isinstance(borders, tuple) else []}
    else:
        recipe = settle_bins(recipe, dataset)
        chain, steps, sides, known = _split(recipe, dataset)
    windows = {name: dict(Counter(example.label for example in side)) for name, side in sides.items()}
    about = {**_about(recipe, dataset, chain), "windows": windows, **known}
    everything = (*dataset.examples, *dataset.unlabelled) if by_subject else ()
    headers = dict.fromkeys(example.window.header for example in everything)
    numbers = {header: i for i, header in enumerate(headers)}
    about |= {"headers": [header_to_json(header) for header in headers]} if by_subject else {}
    rows = {name: _rows(with_steps(side, steps), about, on_window, numbers) for name, side in sides.items() if side}
    _write(out, fmt, rows, about)
    return about


def _split(
    recipe: Recipe, dataset: Dataset
) -> tuple[Chain, tuple[Spec, ...], dict[str, list[Example]], dict[str, Any]]:
    """The chain with what was learned from the training side, its steps that learned, both sides, and facts of the split."""
    split = make_split(dataset.examples, recipe.train, recipe.train.validation, recipe.train.seed)
    check_leaks(dataset.examples, split)
    head, learning = split_chain(recipe.chain)
    steps = fit_steps(learning, [dataset.examples[i].window for i in split.training])
    sides = {name: [dataset.examples[i] for i in getattr(split, name)] for name in _SIDES}
    groups = {name: list(getattr(split, f"{name}_groups")) for name in _SIDES}
    facts = {"kind": split.kind, "seed": split.seed, **groups, "left_out": len(split.left_out)}
    return Chain((*head.specs, *steps)), steps, sides, {"split": facts}


def _write(out: Path, fmt: str, sides: Mapping[str, _Rows], about: dict[str, Any]) -> None:
    """Write a folder that appears when all is written."""
    partial = out.with_name(f"{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        for side, rows in sides.items():
            FORMATS[fmt](partial / f"{side}.{fmt}", rows, about)
        (partial / ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise TrainingError(f"{out} cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _about(recipe: Recipe, dataset: Dataset, chain: Chain) -> dict[str, Any]:
    source = recipe.input_format()
    fmt = chain.output({source.stream: source})
    return {
        "recipe": recipe.name,
        "label": recipe.labels.set,
        "shape": [fmt.rows, *fmt.shape],
        "dtype": "float32",
        "channels": list(fmt.channels),
        "units": list(fmt.units),
        "rate_hz": float(fmt.rate),
        "classes": list(dataset.labels),
        "heads": [
            {
                "name": head.name,
                "column": f"target_{head.name}",
                "set": head.set,
                "kind": head.kind,
                "classes": list(classes_of(head, dataset.examples)),
            }
            for head in recipe.heads
        ],
        "chain": chain.to_json(),
        "inputs": [{"path": path, **facts} for path, facts in dataset.inputs.items()],
        **({} if recipe.join is None else {"streams": [table.stream for table in recipe.inputs]}),
    }


def _rows(
    examples: Iterable[Example],
    about: Mapping[str, Any],
    on_window: Callable[[], None],
    headers: Mapping[Header, int],  # numbers of what makes windows whole again, where they are to be
) -> _Rows:
    number = {label: i for i, label in enumerate(about["classes"])}
    for example in examples:
        window = example.window
        row = {
            "window": np.ascontiguousarray(window.data, np.float32),
            "shape": list(window.data.shape),
            "label": example.label,
            "class": number.get(example.label, -1),
            "session": example.session or window.session,
            "subject": example.subject,
            "start_index": window.start_index,
            "end_index": window.end_index,
            "start_ns": window.start_ns,
            "end_ns": window.end_ns,
            **{head["column"]: example.targets.get(head["name"]) for head in about["heads"]},
        }
        if "streams" in about:
            row["absent"] = " ".join(window.absent)
        if headers:
            row |= {"header": headers[window.header], "padded": window.padded, "anew": window.anew}
            row["path"] = example.recording
            row |= {f"meta_{name}": text for name, text in example.metadata.items()}
        yield row
        on_window()


def _write_tfrecord(path: Path, rows: _Rows, about: dict[str, Any]) -> None:
    absent = {head["column"]: math.nan if head["kind"] == "number" else "" for head in about["heads"]}
    with path.open("wb") as file:
        for row in rows:
            targets = {name: absent[name] if row[name] is None else row[name] for name in absent}
            features = {n: t if isinstance(t, str) else np.array([t], np.float32) for n, t in targets.items()}
            file.write(tfrecord(tf_example(row | features)))


def _write_csv(path: Path, rows: _Rows, about: dict[str, Any]) -> None:
    """Cells ``v0``, ``v1``, … hold the window; nine digits give every float32 back."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for number, row in enumerate(rows):
            values = row.pop("window").reshape(-1).tolist()
            row["shape"] = "x".join(map(str, row["shape"]))
            if not number:
                writer.writerow([*row, *(f"v{i}" for i in range(len(values)))])
            writer.writerow([*row.values(), *(f"{value:.9g}" for value in values)])


def _write_parquet(path: Path, rows: _Rows, about: dict[str, Any]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    size = int(np.prod(about["shape"]))
    texts = ("label", "session", "subject", *(["absent"] if "streams" in about else []))
    numbers = ("class", "start_index", "end_index", "start_ns", "end_ns")
    kinds = {"window": pa.list_(pa.float32(), size), "shape": pa.list_(pa.int64())}
    kinds |= dict.fromkeys(texts, pa.string()) | dict.fromkeys(numbers, pa.int64())
    kinds |= {head["column"]: pa.float64() if head["kind"] == "number" else pa.string() for head in about["heads"]}
    schema = pa.schema(kinds, metadata={"kymo": json.dumps(about)})
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in in_batches(rows, lambda row: int(row["window"].nbytes), _BATCH_BYTES):
            flat: NDArray[np.float32] = np.concatenate([row["window"].reshape(-1) for row in batch])
            columns: dict[str, Any] = {"window": pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), size)}
            columns |= {name: pa.array([row[name] for row in batch], kinds[name]) for name in list(kinds)[1:]}
            writer.write_table(pa.table(columns, schema=schema))


#: How each format is written.
FORMATS: dict[str, Callable[[Path, _Rows, dict[str, Any]], None]] = {
    "tfrecord": _write_tfrecord,
    "parquet": _write_parquet,
    "csv": _write_csv,
}
