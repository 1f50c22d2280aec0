"""Parquet files. In: one column a channel, one row a sample. Out: Recordings; float32 and int16 stay what they are,
times in Unix ns."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.streams.chunk import Array
from kymo.streams.errors import SourceError
from kymo.streams.readers.columns import column_roles
from kymo.streams.readers.files import File
from kymo.streams.readers.table import Block, Gatherer
from kymo.streams.readers.times import TimeColumn
from kymo.streams.recording import ReadOptions, Recording

_BLOCK_ROWS, _SAMPLE_ROWS = 262_144, 2_000
_LARGEST, _RATIO = 2**28, 1000  # of a whole file, unpacked: bytes, and so many times its own size
_TOGETHER_ROWS = 1_000_000  # larger files are given away session by session


def read_parquet(file: File, options: ReadOptions) -> Iterator[Recording]:
    """Recordings of a Parquet file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SourceError(
            "Parquet is read with pyarrow, which is not installed: pip install 'kymo-streams[parquet]'", file.path
        ) from None
    with file.open() as raw:
        try:
            table = pyarrow.parquet.ParquetFile(raw)
            _check_size(table.metadata, raw.seek(0, io.SEEK_END), file.path)
            yield from _recordings(table, file, options)
        except (pyarrow.ArrowException, OSError) as error:
            raise SourceError(f"is no whole Parquet file ({str(error).splitlines()[0][:200]})", file.path) from None


def _check_size(metadata: Any, size: int, path: str) -> None:
    """Refuse a file that unpacks to far more than recordings do: a run of one value takes no room in it, however long."""
    unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    cells, most = 8 * metadata.num_rows * metadata.num_columns, _LARGEST + _RATIO * size
    if max(cells, unpacked) > most:
        raise SourceError(f"{size} bytes of Parquet unpack to {max(cells, unpacked)}, expected up to {most}", path)


def _recordings(table: Any, file: File, options: ReadOptions) -> Iterator[Recording]:
    import pyarrow as pa

    schema = table.schema_arrow
    numeric = {
        f.name
        for f in schema
        if pa.types.is_integer(f.type) or pa.types.is_floating(f.type) or pa.types.is_decimal(f.type)
    }
    if not table.metadata.num_rows:
        raise SourceError("has columns but no rows", file.path)
    roles = column_roles(schema.names, numeric, options, file.path, lambda n: _first(table, n))
    for name in roles.channels:
        if name not in numeric and not pa.types.is_boolean(schema.field(name).type):
            raise SourceError(f"column `{name}` holds {schema.field(name).type}, expected numbers", file.path)
    time_column = roles.time_column(file.path)
    gatherer = Gatherer(file, roles, options, table.metadata.num_rows > _TOGETHER_ROWS, time_column)
    columns = list(dict.fromkeys((*roles.channels, *roles.texts, *([roles.time] if roles.time else []))))
    dtype = _dtype(table, roles.channels)
    row = 1
    for batch in table.iter_batches(_BLOCK_ROWS, columns=columns):
        rows = np.arange(row, row + batch.num_rows, dtype=np.int64)
        row += batch.num_rows
        values = np.column_stack([_numbers(batch.column(name), dtype) for name in roles.channels])
        texts = {name: _texts(batch.column(name)) for name in roles.texts}
        times = None
        if time_column and roles.parts:
            times = time_column.parse(roles.time_texts(texts), rows)
        elif time_column and roles.time:
            times = _times(batch.column(roles.time), time_column, rows)
        if time_column:
            gatherer.notes += [note for note in time_column.notes if note not in gatherer.notes]
        if len(rows):
            yield from gatherer.add(Block(rows, values, texts, times))
    yield from gatherer.finish()


def _dtype(table: Any, channels: Sequence[str]) -> str:
    """What values become: float32 and int16 where all channels are, and no cell is empty where there is no NaN."""
    types = {str(table.schema_arrow.field(name).type) for name in channels}
    if types == {"float"}:
        return "float32"
    return "int16" if types == {"int16"} and not any(_has_nulls(table, name) for name in channels) else "float64"


def _first(table: Any, name: str) -> list[str]:
    """First texts of a column; times as ISO 8601."""
    import pyarrow as pa

    column = next(iter(table.iter_batches(_SAMPLE_ROWS, columns=[name]))).column(0)
    return _texts(column.cast(pa.string()) if pa.types.is_timestamp(column.type) else column)


def _has_nulls(table: Any, name: str) -> bool:
    """Whether a column has an empty cell; a file without statistics is taken to have some."""
    for group in range(table.metadata.num_row_groups):
        columns = table.metadata.row_group(group)
        for i in range(columns.num_columns):
            statistics = columns.column(i).statistics
            if columns.column(i).path_in_schema == name and (statistics is None or statistics.null_count != 0):
                return True
    return False


def _numbers(column: Any, dtype: str) -> Array:
    import pyarrow as pa

    if pa.types.is_decimal(column.type) or pa.types.is_boolean(column.type):
        column = column.cast(pa.float64())
    numbers: Array = column.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    return numbers


def _texts(column: Any) -> list[str]:
    import pyarrow as pa

    if pa.types.is_nested(column.type):
        return [_text(value) for value in column.to_pylist()]
    # Labels and names repeat: each is turned into text once.
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    different = np.array([*map(_text, encoded.dictionary.to_pylist()), ""], object)
    indexes = encoded.indices.cast(pa.int64()).fill_null(len(different) - 1).to_numpy(zero_copy_only=False)
    texts: list[str] = different[indexes].tolist()
    return texts


def _text(value: Any) -> str:
    # pandas writes an empty cell of a numeric column as NaN.
    text = "" if value is None else str(value)
    return "" if text == "nan" else text


def _times(column: Any, time_column: TimeColumn, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    import pyarrow as pa

    if column.null_count:
        first = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise SourceError(f"column `{time_column.column}` is empty", time_column.path, int(rows[first]))
    if pa.types.is_timestamp(column.type):
        nanoseconds = column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64())
        times: NDArray[np.int64] = nanoseconds.to_numpy(zero_copy_only=False)
        return times
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return time_column.numbers(column.to_numpy(zero_copy_only=False), rows)
    return time_column.parse(_texts(column), rows)
