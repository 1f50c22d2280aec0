"""Parquet files. In: one column a channel, one row a sample. Out: Recordings; float32 and int16 stay what they are,
times in Unix ns."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.streams.chunk import Array
from kymo.streams.errors import EmptyFileError, SourceError
from kymo.streams.readers.columns import Block, ColumnRoles, Table
from kymo.streams.readers.files import File
from kymo.streams.readers.table import read_table
from kymo.streams.readers.times import TimeColumn
from kymo.streams.recording import ReadOptions, Recording

_BLOCK_ROWS, _SAMPLE_ROWS = 262_144, 2_000
_LARGEST, _RATIO = 2**28, 1000  # of a whole file, unpacked: bytes, and so many times its own size
_TOGETHER_ROWS = 1_000_000  # larger files are given away session by session


def read_parquet(file: File, options: ReadOptions) -> Iterator[Recording]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SourceError(
            "Parquet is read with pyarrow, which is not installed: pip install 'kymo-streams[parquet]'", file.path
        ) from None
    with file.open() as raw:
        try:
            content = pyarrow.parquet.ParquetFile(raw)
            size, metadata = raw.seek(0, io.SEEK_END), content.metadata
            # A run of one value takes no room in a file, however long it is: far more than recordings have is refused.
            unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
            unpacked, most = max(unpacked, 8 * metadata.num_rows * metadata.num_columns), _LARGEST + _RATIO * size
            if unpacked > most:
                raise SourceError(f"{size} bytes of Parquet unpack to {unpacked}, expected up to {most}", file.path)
            yield from read_table(_ParquetTable(content, file), options)
        except (pyarrow.ArrowException, OSError) as error:
            raise SourceError(f"is no whole Parquet file ({str(error).splitlines()[0][:200]})", file.path) from None


class _ParquetTable(Table):
    def __init__(self, content: Any, file: File) -> None:
        import pyarrow.types as kinds

        self._content, self._types = content, {column.name: column.type for column in content.schema_arrow}
        is_numeric = (kinds.is_integer, kinds.is_floating, kinds.is_decimal)
        numeric = {name for name, kind in self._types.items() if any(of_kind(kind) for of_kind in is_numeric)}
        rows = content.metadata.num_rows
        if not rows:
            raise EmptyFileError("has columns but no rows", file.path)
        super().__init__(file, content.schema_arrow.names, numeric, long=rows > _TOGETHER_ROWS)

    def first(self, name: str) -> Sequence[str]:
        """First texts of a column; times as ISO 8601."""
        import pyarrow as pa

        column = next(iter(self._content.iter_batches(_SAMPLE_ROWS, columns=[name]))).column(0)
        return _texts(column.cast(pa.string()) if pa.types.is_timestamp(column.type) else column)

    def blocks(self, roles: ColumnRoles) -> Iterator[Block]:
        for name in roles.channels:
            if name not in self.numeric and str(self._types[name]) != "bool":
                raise SourceError(f"column `{name}` holds {self._types[name]}, expected numbers", self.path)
        columns = list(dict.fromkeys((*roles.channels, *roles.texts, *([roles.time] if roles.time else []))))
        dtype, row = self._dtype(roles.channels), 1
        for batch in self._content.iter_batches(_BLOCK_ROWS, columns=columns):
            rows = np.arange(row, row + batch.num_rows, dtype=np.int64)
            row += batch.num_rows
            values = np.column_stack([_numbers(batch.column(name), dtype) for name in roles.channels])
            texts = {name: _texts(batch.column(name)) for name in roles.texts}
            times = roles.times(texts, rows) if roles.parts else None
            if roles.clock and not roles.parts:
                times = _times(batch.column(roles.clock.column), roles.clock, rows)
            yield Block(rows, values, texts, times)

    def _dtype(self, channels: Sequence[str]) -> str:
        """What values become: float32 and int16 where all channels are, and no cell is empty where there is no NaN; a file without
        statistics is taken to have empty ones."""
        types, metadata = {str(self._types[name]) for name in channels}, self._content.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        counts = [column.statistics for column in columns if column.path_in_schema in channels]
        if types == {"int16"} and all(count is not None and count.null_count == 0 for count in counts):
            return "int16"
        return "float32" if types == {"float"} else "float64"


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


def _times(column: Any, clock: TimeColumn, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    import pyarrow as pa

    if column.null_count:
        first = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise SourceError(f"column `{clock.column}` is empty", clock.path, int(rows[first]))
    if pa.types.is_timestamp(column.type):
        nanoseconds = column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64())
        times: NDArray[np.int64] = nanoseconds.to_numpy(zero_copy_only=False)
        return times
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return clock.numbers(column.to_numpy(zero_copy_only=False), rows)
    return clock.parse(_texts(column), rows)
