"""An archive for other programs. In: Recordings. Out: CSV or Parquet files, one a session and stream; times in Unix ns.

Columns: ``t_ns``, the channels (of samples with several axes ``channel[i]``), one column a label set where there are labels, ``session``
and, where known, ``subject``. CSV numbers read back to the same float32 or float64. Video goes to Foxglove's format:
:mod:`streams.archive.foxglove`.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.archive.foxglove import sample_times, write_foxglove
from streams.archive.segment import disk_error
from streams.chunk import Array
from streams.errors import ArchiveError
from streams.files import whole_file
from streams.labels.labels import Label
from streams.recording import Recording, StreamData

_ROWS = 20_000
_MOST_COLUMNS = 10_000
Tell = Callable[[str], None]


def export_recordings(
    recordings: Iterable[Recording], fmt: str, out: Path, tell: Tell = lambda _: None
) -> Iterator[tuple[str, list[Path]]]:
    """Write recordings, one after the other."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for recording in recordings:
            stem = file_stem(recording.session)
            if fmt == "foxglove":
                yield recording.session, [_whole(out / f"{stem}.mcap", partial(write_foxglove, recording=recording))]
            else:
                yield recording.session, list(_tables(recording, fmt, out / stem, tell))
    except OSError as error:
        raise disk_error(out, error) from None


def file_stem(session: str) -> str:
    """A session's name as a file's; another name never gives the same.

    Examples
    --------
    >>> file_stem("P07-walk@3"), file_stem("a/b")
    ('P07-walk@3', 'a_b-c14cddc0')
    """
    plain = re.sub(r"[^\w@.=+-]", "_", session).lstrip(".")[:150]
    return plain if plain == session else f"{plain}-{hashlib.sha256(session.encode()).hexdigest()[:8]}"


def label_columns(labels: Iterable[Label], times_ns: NDArray[np.int64]) -> dict[str, list[str]]:
    """The class of every sample, empty where there is none, by label set; ``label`` is the column of the only set."""
    out: dict[str, list[str]] = {}
    for label in labels:
        column = out.setdefault(label.set, [""] * len(times_ns))
        a, b = np.searchsorted(times_ns, [label.start_ns, label.end_ns]).tolist()
        column[a:b] = [label.label] * (b - a)
    return (
        {"label": next(iter(out.values()))}
        if len(out) == 1
        else {f"label.{name}": column for name, column in out.items()}
    )


def _tables(recording: Recording, fmt: str, folder: Path, tell: Tell) -> Iterator[Path]:
    write = {"csv": _write_csv, "parquet": _write_parquet}[fmt]
    seen: dict[str, int] = {}
    for stream in recording.streams:
        form = stream.header.format
        if form.dtype == "jpeg" or int(np.prod(form.shape)) > _MOST_COLUMNS:
            tell(f"{recording.session}: {form.stream} is left out, its samples are pictures; take --format foxglove")
            continue
        seen[form.stream] = seen.get(form.stream, 0) + 1
        again = f".{seen[form.stream]}" if seen[form.stream] > 1 else ""  # the source set its clock anew
        columns = _columns(recording, stream)
        folder.mkdir(exist_ok=True)
        yield _whole(folder / f"{file_stem(form.stream)}{again}.{fmt}", partial(write, columns=columns))


def _columns(recording: Recording, stream: StreamData) -> dict[str, Any]:
    """Arrays ``(n,)`` and lists by name."""
    form, times = stream.header.format, sample_times(stream)
    flat: Array = stream.data.reshape(stream.count, -1)
    out: dict[str, Any] = {"t_ns": times}
    names = [_name(form.channels[place[-1]], place[:-1]) for place in product(*map(range, form.shape))]
    out |= {name: flat[:, i] for i, name in enumerate(names)}
    out |= label_columns(recording.labels, times)
    out["session"] = [recording.session] * stream.count
    if recording.subject is not None:
        out["subject"] = [recording.subject] * stream.count
    return out


def _name(channel: str, place: tuple[int, ...]) -> str:
    return channel + "".join(f"[{i}]" for i in place)


def _write_csv(path: Path, columns: dict[str, Any]) -> None:
    count = len(columns["t_ns"])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for first in range(0, count, _ROWS):
            # The shortest text that reads back to the same number of its own dtype.
            part = [_texts(values[first : first + _ROWS]) for values in columns.values()]
            writer.writerows(zip(*part, strict=True))


def _texts(values: Any) -> list[str]:
    if not isinstance(values, np.ndarray):
        return list(values)
    texts: list[str] = values.astype(str).tolist()
    return ["" if text == "nan" else text for text in texts] if values.dtype.kind == "f" else texts


def _write_parquet(path: Path, columns: dict[str, Any]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    arrays = {
        name: pa.array(values) if isinstance(values, np.ndarray) else pa.array(values, pa.string()).dictionary_encode()
        for name, values in columns.items()
    }
    parquet.write_table(pa.table(arrays), path, compression="zstd")


def _whole(path: Path, write: Callable[[Path], None]) -> Path:
    with whole_file(path) as unfinished:
        write(unfinished)
    return path


def check_format(fmt: str) -> None:
    """Raise early what an export would need."""
    if fmt == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError:
            raise ArchiveError(
                "Parquet is written with pyarrow, which is not installed: pip install 'kymo[parquet]'"
            ) from None
