"""TFRecords of windows, without TensorFlow. In: features of a window; or folders with a file a subject, as `kymo dataset export
--by subject` and `kymo prepare running` write them, and a recipe. Out: bytes; Examples to learn from, with classes and targets by the
recipe's own label sets, as far as the records know them.

A record is its length (uint64), a checksum of that, the bytes of a ``tf.train.Example``, a checksum of those, all little-endian;
checksums are CRC-32C, rotated and offset as TensorFlow's documentation of the format has it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.models.data.examples import EVERY, Dataset, Example, bin_of, number_of
from kymo.processors.chain import Chain
from kymo.processors.recipe.load import Recipe
from kymo.processors.recipe.tables import HeadTable, LabelTable
from kymo.processors.spec import header_from_json
from kymo.streams.archive.format import is_archive
from kymo.streams.chunk import Header, Window
from kymo.streams.codec import varint
from kymo.streams.errors import SourceError, TrainingError
from kymo.streams.labels.labels import canonical, rename
from kymo.streams.readers.files import find
from kymo.streams.readers.keep import Keep

ABOUT = "dataset.json"  # what says all that holds for all records of a folder
#: What a record says of a window under one name.
Feature = str | int | list[int] | NDArray[np.float32]
_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed


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
    folders = [about.parent for about in sorted(path.rglob(ABOUT))]
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
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot be read ({error})", folder / ABOUT) from None
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
    header, anew = headers[int(features["header"][0])], int(features.get("anew", [-1])[0])
    window = Window(header, start, end, start_ns, end_ns, data, padded=padded, absent=absent, anew=anew)
    targets: dict[str, str | float] = {
        head.name: _class(head, known) if head.kind == "classes" else number_of(known[head.set], head, "")
        for head in recipe.heads
        if known.get(head.set)
    }
    names = (features["session"], features["subject"], features["path"])
    label = _class(recipe.labels, known)
    if not recipe.labels.classes:
        label = EVERY if targets else ""
    elif label and borders:
        label = bin_of(label, borders, features["session"])
    return Example(window, label, *names, {}, targets)


def _class(table: LabelTable | HeadTable, known: Mapping[str, str]) -> str:
    return rename(canonical(known.get(table.set, "")), table.names)


def tfrecord(data: bytes) -> bytes:
    length = _LENGTH.pack(len(data))
    return b"".join((length, _CHECKSUM.pack(_masked(length)), data, _CHECKSUM.pack(_masked(data))))


def tf_example(features: Mapping[str, Feature]) -> bytes:
    """Encode a ``tf.train.Example``: texts become bytes features, whole numbers int64 ones, arrays float ones (flat, in C order)."""
    entries = b""
    for name, value in features.items():
        entry = _field(1, name.encode()) + _field(2, _feature(value))
        entries += _field(1, entry)
    return _field(1, entries)


def _feature(value: Feature) -> bytes:
    if isinstance(value, str):
        return _field(1, _field(1, value.encode()))
    if isinstance(value, int | list):
        numbers = [value] if isinstance(value, int) else value
        return _field(3, _field(1, b"".join(varint(number & (1 << 64) - 1) for number in numbers)))
    return _field(2, _field(1, np.ascontiguousarray(value, "<f4").tobytes()))


def _field(number: int, content: bytes) -> bytes:
    """Encode a length-delimited field of Protobuf's wire format."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def read_records(path: Path) -> Iterator[bytes]:
    """Records of a TFRecord file, their checksums compared."""
    with path.open("rb") as file:
        number = 0
        while head := file.read(12):
            number += 1
            data = checksum = b""
            if head[8:] == _CHECKSUM.pack(_masked(head[:8])):
                data, checksum = file.read(_LENGTH.unpack(head[:8])[0]), file.read(4)
            if checksum != _CHECKSUM.pack(_masked(data)):
                raise SourceError(f"record {number} is damaged or cut off; export the windows again", path)
            yield data


def tf_features(example: bytes) -> dict[str, Any]:
    """Decode what :func:`tf_example` writes: texts, lists of whole numbers, float32 arrays."""
    ((_, features),) = _fields(example)
    entries = (dict(_fields(entry)) for _, entry in _fields(features))
    return {entry[1].decode(): _value(entry[2]) for entry in entries}


def _value(feature: bytes) -> Any:
    ((kind, content),) = _fields(feature)
    ((_, values),) = _fields(content) or [(1, b"")]
    if kind == 1:
        return values.decode()
    if kind == 2:
        return np.frombuffer(values, "<f4")
    numbers, at = [], 0
    while at < len(values):
        number, at = _varint(values, at)
        numbers.append(number - (1 << 64) if number >> 63 else number)
    return numbers


def _fields(message: bytes) -> list[tuple[int, bytes]]:
    """Number and content of each length-delimited field."""
    fields, at = [], 0
    while at < len(message):
        key, at = _varint(message, at)
        length, at = _varint(message, at)
        fields.append((key >> 3, message[at : at + length]))
        at += length
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


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
    """Compute a CRC-32C (RFC 3720, appendix B.4)."""
    register, table = 0xFFFFFFFF, _table()
    for byte in data:
        register = table[(register ^ byte) & 255] ^ register >> 8
    return register ^ 0xFFFFFFFF


@cache
def _table() -> list[int]:
    states = list(range(256))
    for _ in range(8):
        states = [state >> 1 ^ (_POLYNOMIAL if state & 1 else 0) for state in states]
    return states
