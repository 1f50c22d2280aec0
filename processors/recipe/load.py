"""Recipes: one use of the system in a TOML file. In: its path, name or text. Out: a Recipe with its compiled chain.

Everything is checked here: names, types, whole numbers of samples, and the formats from step to step, so that a wrong
recipe fails when it is loaded. Times stand in seconds, rates in hertz; windows are counted in raw input samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from kymo.processors.chain import Chain
from kymo.processors.intake import Intake, fill_lengths
from kymo.processors.recipe.compile import PlacedStep, RecipeSteps, compile_chain, read_step
from kymo.processors.recipe.tables import (
    AlertTable,
    HeadTable,
    InputTable,
    LabelTable,
    ModelTable,
    RecipeTables,
    SourceTable,
    Steps,
    TrainTable,
    WindowTable,
)
from kymo.processors.recipe.toml import Document, toml_value
from kymo.processors.steps.maps import Scale
from kymo.processors.windows import PaddedWindows, Windows
from kymo.streams.chunk import Format, signal_format
from kymo.streams.errors import FormatError, RecipeError
from kymo.streams.recording import InputOptions, LabelOptions, ReadOptions
from kymo.streams.schema import SchemaError, nearest
from kymo.streams.units import factor, unit_times

#: Where recipes without a path are looked for: the current folder first, then those that come with Kymo.
INSTALLED = Path(__file__).resolve().parent.parent.parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """One use of the system."""

    name: str  # part of every event's id
    path: Path | None  # the file
    inputs: tuple[InputTable, ...]  # what it takes; exactly one for now
    window_length: int  # raw input samples, as the hop
    window_hop: int
    chain: Chain  # from raw chunks to windows; steps that learn are unfitted
    model: ModelTable | None  # None for a recipe that only processes
    labels: LabelTable = field(default_factory=LabelTable)
    train: TrainTable = field(default_factory=TrainTable)
    source: SourceTable = field(default_factory=SourceTable)
    alerts: tuple[AlertTable, ...] = ()  # who is told of what
    notes: tuple[str, ...] = ()  # what its author should know, such as steps that had to move behind the window
    heads: tuple[HeadTable, ...] = ()  # what the model says beside the recipe's own classes

    @property
    def stateful(self) -> bool:
        """Whether the model goes on from window to window; a window is a hop then."""
        return self.model is not None and self.model.stateful

    def read_options(self) -> ReadOptions:
        """How files become this recipe's sessions."""
        inputs = tuple(InputOptions(i.stream, i.channels, i.rate_hz, i.units) for i in self.inputs)
        inputs = (replace(inputs[0], takes=self.taken_units), *inputs[1:])
        return ReadOptions(
            inputs=inputs,
            session=self.source.session,
            subject=self.source.subject,
            keep=self.source.keep,
            file_names=self.source.file_names,
            label_column=self.labels.column if self.labels.classes else None,
            label_key=self.labels.key if self.labels.classes else None,
            label_names=self.labels.names,
            more_labels=tuple(LabelOptions(head.column, head.key, head.names) for head in self.heads),
        )

    def input_format(self) -> Format:
        """Format of the raw input."""
        return _raw_format(self.inputs[0])

    def output_format(self) -> Format:
        """Format behind the whole chain: of the windows that the model sees."""
        fmt = self.input_format()
        return self.chain.output({fmt.stream: fmt})

    def matches(self, fmt: Format) -> str | None:
        """Why a stream is not this recipe's input.

        Parameters
        ----------
        fmt : Format
            Of a raw stream.

        Returns
        -------
        str or None
            None if the recipe takes it; else the first reason, in words.
        """
        source = self.inputs[0]
        if fmt.stream != source.stream and fmt.stream.partition(".")[0] != source.stream:
            return f"stream `{fmt.stream}` is not `{source.stream}`"
        if len(fmt.shape) != 1 or fmt.dtype in ("jpeg", "uint8"):
            return f"`{fmt.stream}` carries {fmt.dtype}{list(fmt.shape)} a sample, expected one number a channel"
        absent = [c for c in source.channels if c not in fmt.channels]
        if absent:
            return f"`{fmt.stream}` has no channel {', '.join(absent)}; it has {', '.join(fmt.channels)}"
        if fmt.rate != source.rate_hz:
            rate = f"{float(fmt.rate):g} Hz" if fmt.rate else "irregular"
            return f"`{fmt.stream}` is {rate}, expected {float(source.rate_hz):g} Hz"
        for channel, unit in zip(source.channels, self.taken_units if fmt.units else (), strict=False):
            given = fmt.units[fmt.channels.index(channel)]
            try:
                size = factor(given, unit)
            except FormatError as error:
                advice = "" if source.units else "; if that is right, say [[input]] units and change the step `scale`"
                return f"`{fmt.stream}` {channel}: {error}{advice}"
            if size != 1 and not source.units:
                return f"`{fmt.stream}` {channel} is in {given}, expected {unit}; [[input]] units would convert it"
        return None

    @property
    def taken_units(self) -> tuple[str, ...]:
        """Units of the raw channels: those of ``[[input]]``, else of what a first step ``scale`` makes its units; empty where unknown."""
        source, first = self.inputs[0], self.chain.specs[1] if len(self.chain.specs) > 1 else None
        if source.units or not isinstance(first, Scale) or not first.units or np.any(first.offset):
            return source.units
        sizes = np.broadcast_to(first.factor, len(first.units)).tolist()
        return tuple(unit_times(size, unit) for size, unit in zip(sizes, first.units, strict=True))


def load_recipe(path_or_name: str | Path) -> Recipe:
    """The recipe of a file or a name.

    Parameters
    ----------
    path_or_name : str or Path
        A path that ends in .toml, or the name of one in ``./recipes`` or among those that come with Kymo.

    Raises
    ------
    RecipeError
        If there is none, or it does not hold together; the text names file and line.
    """
    text = str(path_or_name)
    path = Path(text)
    if not text.endswith(".toml"):
        folders = [Path("recipes"), INSTALLED]
        files = [
            folder / f"{text}.toml" for folder in folders if "/" not in text and (folder / f"{text}.toml").is_file()
        ]
        if not files:
            names = {file.stem for folder in folders for file in folder.glob("*.toml")}
            hint = nearest(text, names) if names else "; write one with `kymo init`"
            raise RecipeError(f"no recipe {text!r} in {folders[0]} or among those that come with Kymo{hint}")
        path = files[0]
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError("is not UTF-8 text; save it as such", path) from None
    except OSError as error:
        raise RecipeError(f"cannot be read ({error.strerror or error})", path) from None
    return parse_recipe(content, path)


def parse_recipe(text: str, path: Path | None = None) -> Recipe:
    """The recipe of a TOML text.

    Parameters
    ----------
    text : str
        The TOML.
    path : Path, optional
        Where it came from, for errors.

    Raises
    ------
    RecipeError
        If it does not hold together; the text names file and line, and the nearest valid word.
    """
    document = Document(text, path)
    tables = document.read(RecipeTables, document.values)
    chain, (length, hop), notes = _chain(document, tables)
    return Recipe(
        name=tables.name,
        path=path,
        inputs=tables.input,
        window_length=length,
        window_hop=hop,
        chain=chain,
        model=tables.model,
        labels=tables.labels,
        train=tables.train,
        source=tables.source,
        alerts=tables.alerts,
        notes=notes,
        heads=_heads(document, tables),
    )


def _heads(document: Document, tables: RecipeTables) -> tuple[HeadTable, ...]:
    """The recipe's heads, in its order, with what they leave out taken from ``[labels]``."""
    heads: list[HeadTable] = []
    for i, table in enumerate(tables.heads):
        values = {"min_share": tables.labels.min_share, **table}
        if not table.keys() & {"column", "key"} and "name" in table:
            values["key" if tables.labels.key else "column"] = table["name"]
        heads.append(document.read(HeadTable, values, ("heads", i)))
        try:
            heads[-1].check((tables.labels, *heads[:-1]))
        except SchemaError as wrong:
            raise document.wrong(wrong, ("heads", i)) from None
    return tuple(heads)


def _raw_format(table: InputTable) -> Format:
    return signal_format(table.stream, table.channels, table.rate_hz, table.dtype, table.units)


_WHOLE = Fraction(1, 100)  # of a sample


def _chain(document: Document, tables: RecipeTables) -> tuple[Chain, tuple[int, int], tuple[str, ...]]:
    source, window = tables.input[0], tables.window
    length, hop = (_samples(document, window, key, source.rate_hz) for key in ("length_s", "hop_s"))

    def placed(steps: Steps, *where: str) -> list[PlacedStep]:
        return [
            read_step(step, partial(_fail, document, (*where, i)), per_window=len(where) > 1)
            for i, step in enumerate(steps)
        ]

    steps = RecipeSteps(
        windows=PaddedWindows(length, hop) if window.pad else Windows(length, hop),
        before=placed(tables.steps, "steps"),
        behind=placed(window.steps, "window", "steps"),
        fail=partial(_fail, document, ("window",)),
    )
    bridge, fill = fill_lengths(source.rate_hz, source.bridge_ms, source.max_missing, length)
    intake = Intake(source.channels, source.units, source.dtype, bridge, fill, source.max_missing)
    chain, notes = compile_chain(intake, _raw_format(source), steps)
    return chain, (length, hop), notes


def _fail(document: Document, where: tuple[str | int, ...], message: str, *key: str) -> RecipeError:
    return document.error(message, (*where, *key))


def _samples(document: Document, window: WindowTable, key: str, rate: Fraction) -> int:
    """Seconds as a number of samples, whole but for the digits that nobody writes."""
    seconds: Fraction = getattr(window, key)
    count = seconds * rate
    nearest_count = max(1, round(count))
    if abs(count - nearest_count) <= _WHOLE:
        return nearest_count
    raise document.error(
        f"{key} = {toml_value(seconds)} is {float(count):g} samples at {float(rate):g} Hz, expected a whole number; "
        f"the nearest is {toml_value(seconds_of(nearest_count, rate))} ({nearest_count} samples)",
        ("window", key),
    )


def seconds_of(samples: int, rate: Fraction) -> Fraction:
    """The shortest decimal number of seconds that is so many samples.

    Examples
    --------
    >>> float(seconds_of(192, Fraction(9971, 100))), float(seconds_of(3, Fraction(30)))
    (1.9256, 0.1)
    """
    exact = samples / rate
    places = range(1, 12)
    return next((short for n in places if abs((short := round(exact, n)) * rate - samples) <= _WHOLE), exact)
