"""Windows for other programs. In: a recipe's Dataset. Out: a folder with TFRecord, Parquet or CSV files, float32.

::

    training.*, validation.*   a record a window: window, shape, label, class, session, subject, start and end, and
                               target_NAME of each further head: its class or number
    dataset.json               shape, channels, classes, heads, split, the chain with its learned numbers, checksums of the inputs

A window is as the trainer sees it: behind the whole chain, with what was learned from the training side, values in C order of
``(time, …, channels)``. Windows that a split leaves out are on neither side. What is not known of a head is an empty text or
NaN in TFRecord, null in Parquet, an empty cell in CSV.

TFRecord needs no TensorFlow: a record is its length (uint64), a checksum of that, the bytes of a ``tf.train.Example``, a checksum of
those, all little-endian; checksums are CRC-32C, rotated and offset as TensorFlow's documentation of the format has it.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import struct
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kymo.models.data.examples import Dataset, Example, classes_of
from kymo.models.data.samples import fit_steps, split_chain, with_steps
from kymo.models.data.splits import Split, check_leaks, make_split
from kymo.processors.chain import Chain
from kymo.processors.recipe.load import Recipe
from kymo.streams.codec import varint
from kymo.streams.errors import TrainingError

_Rows = Iterator[dict[str, Any]]
_SIDES = ("training", "validation")
_BATCH_BYTES = 16 * 2**20
#: What a TFRecord says of a window under one name.
_Feature = str | int | list[int] | NDArray[np.float32]
_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_LANES_LOG2 = 11
_Words = NDArray[np.uint32]


def export_dataset(
    recipe: Recipe, dataset: Dataset, fmt: str, out: Path, on_window: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Write a recipe's windows into a new folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} is there and not empty; name a new folder")
    split = make_split(dataset.examples, recipe.train, recipe.train.validation, recipe.train.seed)
    check_leaks(dataset.examples, split)
    head, steps = split_chain(recipe.chain)
    fitted = fit_steps(steps, [dataset.examples[i].window for i in split.training])
    about = _about(recipe, dataset, split, Chain((*head.specs, *fitted)))
    sides = {side: with_steps([dataset.examples[i] for i in getattr(split, side)], fitted) for side in _SIDES}
    _write(out, fmt, {side: _rows(examples, about, on_window) for side, examples in sides.items() if examples}, about)
    return about


def _write(out: Path, fmt: str, sides: Mapping[str, _Rows], about: dict[str, Any]) -> None:
    """Write a folder that appears when all is written."""
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
    counts = {side: Counter(dataset.examples[i].label for i in getattr(split, side)) for side in _SIDES}
    return {
        "recipe": recipe.name,
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
                "kind": head.kind,
                "classes": list(classes_of(head, dataset.examples)),
            }
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
        "inputs": [{"path": path, **facts} for path, facts in dataset.inputs.items()],
    }


def _rows(examples: Sequence[Example], about: Mapping[str, Any], on_window: Callable[[], None]) -> _Rows:
    number = {label: i for i, label in enumerate(about["classes"])}
    for example in examples:
        window = example.window
        yield {
            "window": np.ascontiguousarray(window.data, np.float32),
            "shape": list(window.data.shape),
            "label": example.label,
            "class": number[example.label],
            "session": example.session or window.session,
            "subject": example.subject,
            "start_index": window.start_index,
            "end_index": window.end_index,
            "start_ns": window.start_ns,
            "end_ns": window.end_ns,
            **{head["column"]: example.targets.get(head["name"]) for head in about["heads"]},
        }
        on_window()


def _write_tfrecord(path: Path, rows: _Rows, about: dict[str, Any]) -> None:
    absent = {head["column"]: math.nan if head["kind"] == "number" else "" for head in about["heads"]}
    with path.open("wb") as file:
        for row in rows:
            targets = {name: absent[name] if row[name] is None else row[name] for name in absent}
            file.write(tfrecord(tf_example(row | {name: _target_feature(target) for name, target in targets.items()})))


def _target_feature(target: str | float) -> _Feature:
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


def tfrecord(data: bytes) -> bytes:
    """Frame one record of a TFRecord file."""
    length = _LENGTH.pack(len(data))
    return b"".join((length, _CHECKSUM.pack(_masked(length)), data, _CHECKSUM.pack(_masked(data))))


def tf_example(features: Mapping[str, _Feature]) -> bytes:
    """Encode a ``tf.train.Example``: texts become bytes features, whole numbers int64 ones, arrays float ones (flat, in C order)."""
    entries = b""
    for name, value in features.items():
        entry = _field(1, name.encode()) + _field(2, _feature(value))
        entries += _field(1, entry)
    return _field(1, entries)


def _feature(value: _Feature) -> bytes:
    if isinstance(value, str):
        return _field(1, _field(1, value.encode()))
    if isinstance(value, int | list):
        numbers = [value] if isinstance(value, int) else value
        return _field(3, _field(1, b"".join(varint(number & (1 << 64) - 1) for number in numbers)))
    return _field(2, _field(1, np.ascontiguousarray(value, "<f4").tobytes()))


def _field(number: int, content: bytes) -> bytes:
    """Encode a length-delimited field of Protobuf's wire format."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def _masked(data: bytes) -> int:
    """Compute the checksum that stands in a TFRecord file."""
    crc = _checksum()(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def _checksum() -> Callable[[bytes], int]:
    """Take a compiled CRC-32C where one is installed."""
    try:
        compiled: Callable[[bytes], int] = import_module("aiokafka.record.util").calc_crc32c
    except (ImportError, AttributeError):
        return crc32c
    return compiled


def crc32c(data: bytes) -> int:
    """Compute a CRC-32C (RFC 3720, appendix B.4).

    The bytes are cut into lanes that numpy runs through side by side. A CRC is linear: that of two lanes is the first one's,
    moved on by as many zero bytes as the second has, plus the second one's.

    Examples
    --------
    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    if len(data) < 64:
        state = 0xFFFFFFFF
        for byte in data:
            state = int(_table()[(state ^ byte) & 255]) ^ state >> 8
        return state ^ 0xFFFFFFFF
    lanes = 1 << min(_LANES_LOG2, len(data).bit_length() // 2)
    length = -(-len(data) // lanes)
    # Zeros in front change nothing as long as the register is 0; that it begins as ones is the same as flipping 32 bits.
    padded = np.zeros(lanes * length, np.uint8)
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    padded[-len(data) :][:4] ^= 255
    table, columns = _table(), np.ascontiguousarray(padded.reshape(lanes, length).T)
    states = np.zeros(lanes, np.uint32)
    for column in columns:
        states = table[(states ^ column) & 255] ^ states >> 8
    while len(states) > 1:
        states = _apply(_zeros(length), states[::2]) ^ states[1::2]
        length *= 2
    return int(states[0]) ^ 0xFFFFFFFF


@cache
def _table() -> _Words:
    states = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        states = np.where(states & 1, states >> 1 ^ np.uint32(_POLYNOMIAL), states >> 1)
    return states.astype(np.uint32)


@lru_cache(maxsize=64)
def _zeros(count: int) -> _Words:
    """Tell what becomes of each of the register's 32 bits after `count` zero bytes."""
    if count == 1:
        bits: Any = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32))
        stepped: _Words = _table()[bits & 255] ^ bits >> 8
        return stepped
    half = _zeros(count // 2)
    twice = _apply(half, half)
    return _apply(_zeros(1), twice) if count % 2 else twice


def _apply(operator: _Words, states: _Words) -> _Words:
    result = np.zeros_like(states)
    for bit in range(32):
        result ^= operator[bit] * (states >> np.uint32(bit) & np.uint32(1))
    return result
