"""Windows for other programs. In: a recipe's Dataset. Out: a folder with TFRecord, Parquet or CSV files, float32.

::

    training.*, validation.*   a record a window: window, shape, label, class, session, subject, start and end, and
                               target_NAME of each further head: its class or number
    dataset.json               shape, channels, classes, heads, split, the chain with its learned numbers, checksums of the inputs

A window is as the trainer sees it: behind the whole chain, with what was learned from the training side, values in C order of
``(time, …, channels)``. Windows that a split leaves out are on neither side. What is not known of a head is an empty text or
NaN in TFRecord, null in Parquet, an empty cell in CSV.

Or a file a subject, ``SUBJECT.*``: then nothing is split, nothing has learned, windows without a label are there too (class -1),
and TFRecords hold what else is known of a recording as ``meta_NAME``. These TFRecords can be trained from: see
:mod:`kymo.models.data.from_tfrecord`.
"""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kymo.models.data.bins import settle_bins
from kymo.models.data.examples import Dataset, Example, classes_of
from kymo.models.data.samples import fit_steps, split_chain, with_steps
from kymo.models.data.splits import Split, check_leaks, make_split
from kymo.models.data.tfrecord import Feature, tf_example, tfrecord
from kymo.processors.chain import Chain
from kymo.processors.recipe.load import Recipe
from kymo.processors.spec import header_to_json
from kymo.streams.chunk import Header
from kymo.streams.errors import TrainingError

_Rows = Iterator[dict[str, Any]]
_SIDES = ("training", "validation")
_BATCH_BYTES = 16 * 2**20
_ABOUT = "dataset.json"


def export_dataset(
    recipe: Recipe,
    dataset: Dataset,
    fmt: str,
    out: Path,
    on_window: Callable[[], None] = lambda: None,
    by_subject: bool = False,  # a file a subject, before anything learns
) -> dict[str, Any]:
    """Write a recipe's windows into a new folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} is there and not empty; name a new folder")
    if by_subject:  # numbers whose borders are left to the data stay numbers
        return _export_by_subject(recipe, dataset, fmt, out, on_window)
    recipe = settle_bins(recipe, dataset)
    split = make_split(dataset.examples, recipe.train, recipe.train.validation, recipe.train.seed)
    check_leaks(dataset.examples, split)
    head, steps = split_chain(recipe.chain)
    fitted = fit_steps(steps, [dataset.examples[i].window for i in split.training])
    about = _about(recipe, dataset, Chain((*head.specs, *fitted)))
    counts = {side: Counter(dataset.examples[i].label for i in getattr(split, side)) for side in _SIDES}
    about["windows"] = {side: dict(count) for side, count in counts.items()}
    about["split"] = _split_facts(split)
    sides = {side: with_steps([dataset.examples[i] for i in getattr(split, side)], fitted) for side in _SIDES}
    _write(out, fmt, {side: _rows(examples, about, on_window) for side, examples in sides.items() if examples}, about)
    return about


def _export_by_subject(
    recipe: Recipe, dataset: Dataset, fmt: str, out: Path, on_window: Callable[[], None]
) -> dict[str, Any]:
    head = split_chain(recipe.chain)[0]
    subjects: dict[str, list[Example]] = {}
    headers: dict[Header, int] = {}
    for example in (*dataset.examples, *dataset.unlabelled):
        subjects.setdefault(re.sub(r"[^\w.-]+", "_", example.subject) or "unknown", []).append(example)
        headers.setdefault(example.window.header, len(headers))
    about = _about(recipe, dataset, head)
    about["windows"] = {
        name: dict(Counter(example.label for example in examples)) for name, examples in subjects.items()
    }
    about["headers"] = [header_to_json(header) for header in headers]
    about["by"] = "subject"
    about["bins"] = list(borders) if isinstance(borders := recipe.labels.bins, tuple) else []
    rows = {name: _rows(examples, about, on_window, headers) for name, examples in sorted(subjects.items())}
    _write(out, fmt, rows, about)
    return about


def _write(out: Path, fmt: str, sides: Mapping[str, _Rows], about: dict[str, Any]) -> None:
    """Write a folder that appears when all is written."""
    partial = out.with_name(f"{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        for side, rows in sides.items():
            FORMATS[fmt](partial / f"{side}.{fmt}", rows, about)
        (partial / _ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
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
    }


def _split_facts(split: Split) -> dict[str, Any]:
    return {
        "kind": split.kind,
        "seed": split.seed,
        "training": list(split.training_groups),
        "validation": list(split.validation_groups),
        "left_out": len(split.left_out),
    }


def _rows(
    examples: Sequence[Example],
    about: Mapping[str, Any],
    on_window: Callable[[], None],
    headers: Mapping[Header, int] | None = None,  # numbers of what makes windows whole again
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
        if headers is not None:
            row |= {"header": headers[window.header], "padded": window.padded, "path": example.recording}
            row |= {f"meta_{name}": text for name, text in example.metadata.items()}
        yield row
        on_window()


def _write_tfrecord(path: Path, rows: _Rows, about: dict[str, Any]) -> None:
    absent = {head["column"]: math.nan if head["kind"] == "number" else "" for head in about["heads"]}
    with path.open("wb") as file:
        for row in rows:
            targets = {name: absent[name] if row[name] is None else row[name] for name in absent}
            file.write(tfrecord(tf_example(row | {name: _target_feature(target) for name, target in targets.items()})))


def _target_feature(target: str | float) -> Feature:
    return target if isinstance(target, str) else np.array([target], np.float32)


def _write_csv(path: Path, rows: _Rows, about: dict[str, Any]) -> None:
    """Cells ``v0``, ``v1``, … hold the window; nine digits give every float32 back."""
    with path.open("w", newline="", encoding="utf-8") as file:
        _csv(file, rows, int(np.prod(about["shape"])))


def _csv(file: IO[str], rows: _Rows, size: int) -> None:
    writer = csv.writer(file, lineterminator="\n")
    for number, row in enumerate(rows):
        values = row.pop("window").reshape(-1).tolist()
        row["shape"] = "x".join(map(str, row["shape"]))
        if not number:
            writer.writerow([*row, *(f"v{i}" for i in range(size))])
        writer.writerow([*row.values(), *(f"{value:.9g}" for value in values)])


def _write_parquet(path: Path, rows: _Rows, about: dict[str, Any]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    size = int(np.prod(about["shape"]))
    texts, numbers = ("label", "session", "subject"), ("class", "start_index", "end_index", "start_ns", "end_ns")
    kinds = {"window": pa.list_(pa.float32(), size), "shape": pa.list_(pa.int64())}
    kinds |= dict.fromkeys(texts, pa.string()) | dict.fromkeys(numbers, pa.int64())
    kinds |= {head["column"]: pa.float64() if head["kind"] == "number" else pa.string() for head in about["heads"]}
    schema = pa.schema(kinds, metadata={"kymo": json.dumps(about)})
    batch: list[dict[str, Any]] = []

    def flush(writer: Any) -> None:
        flat: NDArray[np.float32] = np.concatenate([row["window"].reshape(-1) for row in batch])
        columns: dict[str, Any] = {
            name: pa.array([row[name] for row in batch], kinds[name]) for name in list(kinds)[1:]
        }
        columns["window"] = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), size)
        writer.write_table(pa.table({name: columns[name] for name in kinds}, schema=schema))
        batch.clear()

    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for row in rows:
            batch.append(row)
            if len(batch) * size * 4 >= _BATCH_BYTES:
                flush(writer)
        if batch:
            flush(writer)


#: How each format is written.
FORMATS: dict[str, Callable[[Path, _Rows, dict[str, Any]], None]] = {
    "tfrecord": _write_tfrecord,
    "parquet": _write_parquet,
    "csv": _write_csv,
}
