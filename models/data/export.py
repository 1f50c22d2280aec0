"""Windows for other programs. In: a recipe's Dataset. Out: a folder with TFRecord, Parquet or CSV files, float32.

::

    training.*, validation.*   a record a window: window, shape, label, class, session, subject, start and end, and
                               target_NAME of each further head: its class or number
    dataset.json               shape, channels, classes, heads, split, the chain with its learned numbers, checksums of the inputs

A window is as the trainer sees it: behind the whole chain, with what was learned from the training side, values in C order of
``(time, …, channels)``. Windows that a split leaves out are on neither side. What is not known of a head is an empty text or
NaN in TFRecord, null in Parquet, an empty cell in CSV.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from models.data.dataset import Dataset, Example
from models.data.leaks import check_leaks
from models.data.splits import Split, make_split
from models.data.steps import fit_steps, split_chain, with_steps
from models.data.targets import ordered
from models.data.tfrecord import Feature, example, record
from models.training.train import DEFAULTS
from processors.chain import Chain
from processors.recipe.load import HeadTable, Recipe
from streams.errors import TrainingError

Rows = Iterator[dict[str, Any]]
SIDES = ("training", "validation")
_BATCH_BYTES = 16 * 2**20


def export_dataset(
    recipe: Recipe, dataset: Dataset, fmt: str, out: Path, on_window: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Write a recipe's windows into a new folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} is there and not empty; name a new folder")
    parameters = DEFAULTS | dict(recipe.train.parameters)
    split = make_split(dataset.examples, recipe.train, parameters["validation"], parameters["seed"])
    check_leaks(dataset.examples, split)
    head, steps = split_chain(recipe.chain)
    fitted = fit_steps(steps, [dataset.examples[i].window for i in split.training])
    about = _about(recipe, dataset, split, Chain((*head.specs, *fitted)))
    sides = {side: with_steps([dataset.examples[i] for i in getattr(split, side)], fitted) for side in SIDES}
    _write(out, fmt, {side: _rows(found, about, on_window) for side, found in sides.items() if found}, about)
    return about


def _write(out: Path, fmt: str, sides: Mapping[str, Rows], about: dict[str, Any]) -> None:
    """A folder that appears when all is written."""
    partial = out.with_name(f"{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        for side, rows in sides.items():
            FORMATS[fmt](partial / f"{side}.{fmt}", rows, about)
        (partial / "dataset.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise TrainingError(f"{out} cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _about(recipe: Recipe, dataset: Dataset, split: Split, chain: Chain) -> dict[str, Any]:
    fmt = recipe.output_format()
    counts = {side: Counter(dataset.examples[i].label for i in getattr(split, side)) for side in SIDES}
    return {
        "recipe": recipe.name,
        "shape": [fmt.rows, *fmt.shape],
        "dtype": "float32",
        "channels": list(fmt.channels),
        "units": list(fmt.units),
        "rate_hz": float(fmt.rate),
        "classes": list(dataset.labels),
        "heads": [
            {"name": head.name, "column": f"target_{head.name}", "kind": head.kind, "classes": _classes(dataset, head)}
            for head in recipe.heads
        ],
        "windows": {side: dict(count) for side, count in counts.items()},
        "split": {
            "kind": split.kind,
            "seed": split.seed,
            "training": list(split.training_groups),
            "validation": list(split.validation_groups),
            "left_out": len(split.left_out),
        },
        "chain": chain.to_json(),
        "inputs": [{"path": path, **found} for path, found in dataset.inputs.items()],
    }


def _classes(dataset: Dataset, head: HeadTable) -> list[str]:
    known = (example.targets[head.name] for example in dataset.examples if head.name in example.targets)
    return list(ordered(map(str, known))) if head.kind == "classes" else []


def _rows(examples: Sequence[Example], about: Mapping[str, Any], on_window: Callable[[], None]) -> Rows:
    number = {label: i for i, label in enumerate(about["classes"])}
    for one in examples:
        window = one.window
        yield {
            "window": np.ascontiguousarray(window.data, np.float32),
            "shape": list(window.data.shape),
            "label": one.label,
            "class": number[one.label],
            "session": one.session or window.session,
            "subject": one.subject,
            "start_index": window.start_index,
            "end_index": window.end_index,
            "start_ns": window.start_ns,
            "end_ns": window.end_ns,
            **{head["column"]: one.targets.get(head["name"]) for head in about["heads"]},
        }
        on_window()


def _write_tfrecord(path: Path, rows: Rows, about: dict[str, Any]) -> None:
    absent = {head["column"]: math.nan if head["kind"] == "number" else "" for head in about["heads"]}
    with path.open("wb") as file:
        for row in rows:
            targets = {name: absent[name] if row[name] is None else row[name] for name in absent}
            file.write(record(example(row | {name: _feature(target) for name, target in targets.items()})))


def _feature(target: str | float) -> Feature:
    return target if isinstance(target, str) else np.array([target], np.float32)


def _write_csv(path: Path, rows: Rows, about: dict[str, Any]) -> None:
    """Cells ``v0``, ``v1``, … hold the window; nine digits give every float32 back."""
    with path.open("w", newline="", encoding="utf-8") as file:
        _csv(file, rows, int(np.prod(about["shape"])))


def _csv(file: IO[str], rows: Rows, size: int) -> None:
    writer = csv.writer(file, lineterminator="\n")
    for number, row in enumerate(rows):
        values = row.pop("window").reshape(-1).tolist()
        row["shape"] = "x".join(map(str, row["shape"]))
        if not number:
            writer.writerow([*row, *(f"v{i}" for i in range(size))])
        writer.writerow([*row.values(), *(f"{value:.9g}" for value in values)])


def _write_parquet(path: Path, rows: Rows, about: dict[str, Any]) -> None:
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
FORMATS: dict[str, Callable[[Path, Rows, dict[str, Any]], None]] = {
    "tfrecord": _write_tfrecord,
    "parquet": _write_parquet,
    "csv": _write_csv,
}
