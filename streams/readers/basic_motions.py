"""The BasicMotions recordings that ship inside the `aeon` package. In: ``train`` or ``test``. Out: 40 Recordings each.

A smart watch on the wrist of four students: accelerometer and gyroscope, 10 Hz, 10 s each; badminton, running,
standing, walking. The files say neither when nor in which unit they were taken: sample 0 of each stands at 0 ns (1970),
units are left empty. Only aeon's data files are used, its code is not imported (it needs numba and more).
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from kymo.streams.chunk import Header, signal_format
from kymo.streams.errors import SourceError
from kymo.streams.labels.labels import canonical, interval, rename
from kymo.streams.readers.columns import no_such_name, requested_inputs
from kymo.streams.recording import InputOptions, ReadOptions, Recording, StreamData

CHANNELS = ("ax", "ay", "az", "gx", "gy", "gz")
RATE_HZ = Fraction(10)
_STREAM = "imu.wrist"
_METADATA = {
    "device": "smart watch",
    "placement": "wrist",
    "dataset": "BasicMotions (UEA archive, from the aeon package)",
}
_NOTE = "no start time in the file: sample 0 stands at 0 ns"
#: Names that :func:`kymo.streams.readers.read` takes in place of a path.
NAMES = {"basicmotions:train": "TRAIN", "basicmotions:test": "TEST"}


def read_basic_motions(name: str, options: ReadOptions) -> Iterator[Recording]:
    path = _file(NAMES[name])
    inputs = requested_inputs(options, name)
    item = inputs[0] if inputs else InputOptions(_STREAM)
    channels = item.channels or CHANNELS
    for channel in channels:
        if channel not in CHANNELS:
            raise no_such_name(channel, CHANNELS, name, "channel")
    if item.rate_hz not in (None, RATE_HZ):
        raise SourceError(f"has {RATE_HZ} Hz, the recipe says {item.rate_hz} Hz; correct `rate_hz`", name)
    fmt = signal_format(item.stream, channels, RATE_HZ, "float64", item.units)
    columns = [CHANNELS.index(channel) for channel in channels]
    prefix = options.session_name or name.replace(":", "-")
    for number, (data, name_of_class) in enumerate(_cases(path)):
        session = f"{prefix}-{number:02d}"
        stream = StreamData(Header(session, 0, fmt), np.ascontiguousarray(data[:, columns]))
        text = rename(canonical(name_of_class.lower()), options.label_names)
        label = interval(session, "label", 0, stream.end_ns, text, author="BasicMotions")
        yield Recording(session, [stream], [label], None, dict(_METADATA), name, [_NOTE])


def _file(part: str) -> Path:
    # find_spec of a top-level package runs none of its code.
    spec = find_spec("aeon")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "datasets" / "data" / "BasicMotions" / f"BasicMotions_{part}.ts"
        if path.is_file():
            return path
    raise SourceError(
        "the BasicMotions recordings come with aeon, which is not installed: pip install 'kymo-streams[demo]'",
        f"basicmotions:{part.lower()}",
    )


def _cases(path: Path) -> Iterator[tuple[np.ndarray[tuple[int, ...], np.dtype[np.float64]], str]]:
    """Each case of a `.ts` file: ``(samples, channels)``, and its class. A line is its channels, then the class, parted
    by colons."""
    data = False
    for row, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if data and line.strip():
            *signals, label = line.strip().split(":")
            try:
                samples = np.array([[float(text) for text in signal.split(",")] for signal in signals])
                yield samples.T.reshape(-1, len(CHANNELS)), label
            except ValueError as error:
                raise SourceError(f"is damaged ({error}); install aeon again", path, row) from None
        data = data or line.strip().lower() == "@data"
