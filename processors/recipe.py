"""Recipes: one use of the system in a TOML file. In: its path, name or text. Out: a Recipe with its compiled chain.

Everything is checked here: names, types, whole numbers of samples, and the formats from step to step, so that a wrong recipe fails when
it is loaded. Times stand in seconds, rates in hertz; windows are counted in raw input samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from processors.chain import Chain
from processors.compile import Layout, compile_chain, read_step
from processors.intake import Intake, fill_lengths
from processors.recipe_toml import Document, Table, format_recipe, toml_value
from processors.registry import nearest
from processors.units import factor
from processors.windows import Windows
from streams.chunk import Format, signal_format
from streams.errors import FormatError, RecipeError
from streams.recording import InputOptions, ReadOptions

SPLITS = ("subject", "session", "window")
_TABLES = ("name", "source", "input", "steps", "window", "model", "labels", "train", "alerts")
#: Where recipes without a path are looked for: the current folder first, then those that come with Kymo.
INSTALLED = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class InputTable:
    """One ``[[input]]``: which stream the recipe takes.

    Attributes
    ----------
    stream : str
        ``kind`` for one at any place, or ``kind.place``.
    rate_hz : Fraction
        Samples per second, above 0.
    channels : tuple of str
        By name, in this order.
    units : tuple of str
        One a channel, or empty to take them as they come.
    dtype : str
        float32 or float64: what the chain computes in.
    bridge_ms : float
        Gaps of up to this length are interpolated.
    max_missing : float
        Share of a window's samples that may be missing, 0 to 1.
    """

    stream: str
    rate_hz: Fraction
    channels: tuple[str, ...]
    units: tuple[str, ...] = ()
    dtype: str = "float32"
    bridge_ms: float = 0.0
    max_missing: float = 0.0


@dataclass(frozen=True)
class ModelTable:
    """``[model]``: the architecture, the probability below which the label is ``unknown``, and the architecture's own parameters."""

    architecture: str
    min_probability: float
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelTable:
    """``[labels]``: a column, or a key of a labels JSON; class names; the share of a window that a label must cover."""

    column: str | None = "label"
    key: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    min_share: float = 0.5


@dataclass(frozen=True)
class TrainTable:
    """``[train]``: what must not stand on both sides of a split (one of :data:`SPLITS`), and the trainer's own parameters."""

    split: str = "session"
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceTable:
    """``[source]``: columns that together name a session, the subject's column, and which rows to keep."""

    session: tuple[str, ...] = ()
    subject: str | None = None
    keep: str | None = None


@dataclass(frozen=True)
class Recipe:
    """One use of the system.

    Attributes
    ----------
    name : str
        Part of every event's id.
    path : Path, optional
        The file.
    inputs : tuple of InputTable
        What it takes; exactly one for now.
    window_length, window_hop : int
        Raw input samples.
    chain : Chain
        From raw chunks to windows; steps that learn are unfitted.
    model : ModelTable, optional
        None for a recipe that only processes.
    labels, train, source
        The tables of these names.
    alerts : tuple of mapping
        Each ``[[alerts]]`` as it stands.
    notes : tuple of str
        What its author should know, such as steps that had to move behind the window.
    """

    name: str
    path: Path | None
    inputs: tuple[InputTable, ...]
    window_length: int
    window_hop: int
    chain: Chain
    model: ModelTable | None
    labels: LabelTable = LabelTable()
    train: TrainTable = TrainTable()
    source: SourceTable = SourceTable()
    alerts: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def read_options(self) -> ReadOptions:
        """How files become this recipe's sessions."""
        inputs = tuple(InputOptions(i.stream, i.channels, i.rate_hz, i.units) for i in self.inputs)
        return ReadOptions(
            inputs=inputs,
            session=self.source.session,
            subject=self.source.subject,
            keep=self.source.keep,
            label_column=self.labels.column,
            label_key=self.labels.key,
            label_names=self.labels.names,
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
        wanted = self.inputs[0]
        if fmt.stream != wanted.stream and fmt.stream.partition(".")[0] != wanted.stream:
            return f"stream `{fmt.stream}` is not `{wanted.stream}`"
        if len(fmt.shape) != 1 or fmt.dtype in ("jpeg", "uint8"):
            return f"`{fmt.stream}` carries {fmt.dtype}{list(fmt.shape)} a sample, expected one number a channel"
        absent = [c for c in wanted.channels if c not in fmt.channels]
        if absent:
            return f"`{fmt.stream}` has no channel {', '.join(absent)}; it has {', '.join(fmt.channels)}"
        if fmt.rate != wanted.rate_hz:
            came = f"{float(fmt.rate):g} Hz" if fmt.rate else "irregular"
            return f"`{fmt.stream}` is {came}, expected {float(wanted.rate_hz):g} Hz"
        for channel, unit in zip(wanted.channels, wanted.units, strict=False):
            came = fmt.units[fmt.channels.index(channel)] if fmt.units else ""
            try:
                factor(came, unit)
            except FormatError as error:
                return f"`{fmt.stream}` {channel}: {error}"
        return None


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
        found = [
            folder / f"{text}.toml" for folder in folders if "/" not in text and (folder / f"{text}.toml").is_file()
        ]
        if not found:
            names = {file.stem for folder in folders for file in folder.glob("*.toml")}
            hint = nearest(text, names) if names else "; write one with `kymo init`"
            raise RecipeError(f"no recipe {text!r} in {folders[0]} or among those that come with Kymo{hint}")
        path = found[0]
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
    root = Table(document, (), document.values, _TABLES)
    name = root.text("name")
    if "/" in name or name != name.strip():
        raise root.error(
            f"name = {toml_value(name)}: it becomes part of event ids; use no slash and no blanks around it", "name"
        )
    inputs = _inputs(root)
    chain, (length, hop), notes = _chain(root, inputs[0])
    return Recipe(
        name=name,
        path=path,
        inputs=inputs,
        window_length=length,
        window_hop=hop,
        chain=chain,
        model=_model(root),
        labels=_labels(root),
        train=_train(root),
        source=_source(root),
        alerts=_alerts(root),
        notes=notes,
    )


def _inputs(root: Table) -> tuple[InputTable, ...]:
    known = ("stream", "rate_hz", "channels", "units", "dtype", "bridge_ms", "max_missing")
    tables = root.tables("input", known)
    if not tables:
        raise root.error("a recipe lacks [[input]]: which stream it takes, with rate_hz and channels")
    inputs = tuple(_input(table) for table in tables)
    if len(tables) > 1:
        raise tables[1].error("several [[input]]s: a recipe takes one stream; leave one, or write a recipe for each")
    return inputs


def _input(table: Table) -> InputTable:
    channels = table.texts("channels")
    if len(set(channels)) < len(channels):
        twice = next(c for c in channels if channels.count(c) > 1)
        raise table.error(f"channels: {twice!r} stands there twice", "channels")
    units = table.texts("units", ())
    if units and len(units) != len(channels):
        raise table.error(f"units: {len(units)} for {len(channels)} channels, expected one each", "units")
    dtype = table.text("dtype", "float32")
    if dtype not in ("float32", "float64"):
        raise table.error(f'dtype = {toml_value(dtype)}: expected "float32" or "float64"', "dtype")
    bridge, missing = table.number("bridge_ms", 0, 0), table.number("max_missing", 0, 0, 1)
    return InputTable(table.text("stream"), table.fraction("rate_hz"), channels, units, dtype, bridge, missing)


def _raw_format(table: InputTable) -> Format:
    return signal_format(table.stream, table.channels, table.rate_hz, table.dtype, table.units)


def _chain(root: Table, source: InputTable) -> tuple[Chain, tuple[int, int], tuple[str, ...]]:
    window = root.table("window", ("length_s", "hop_s", "steps"))
    if window is None:
        raise root.error("a recipe lacks [window] with length_s and hop_s")
    length, hop = _samples(window, "length_s", source.rate_hz), _samples(window, "hop_s", source.rate_hz)
    layout = Layout(
        windows=Windows(length, hop),
        steps=[read_step(t.rest(), t.error, per_window=False) for t in root.tables("steps", (), free=True)],
        window_steps=[read_step(t.rest(), t.error, per_window=True) for t in window.tables("steps", (), free=True)],
        fail=window.error,
    )
    bridge, fill = fill_lengths(source.rate_hz, source.bridge_ms, source.max_missing, length)
    intake = Intake(source.channels, source.units, source.dtype, bridge, fill, source.max_missing)
    chain, notes = compile_chain(intake, _raw_format(source), layout)
    return chain, (length, hop), notes


def _samples(window: Table, key: str, rate: Fraction) -> int:
    """Seconds as a whole number of samples."""
    seconds = window.fraction(key)
    count = seconds * rate
    if count.denominator == 1:
        return int(count)
    near = max(1, round(count))
    raise window.error(
        f"{key} = {toml_value(seconds)} is {float(count):g} samples at {float(rate):g} Hz, expected a whole number; "
        f"the nearest is {toml_value(near / rate)} ({near} samples)",
        key,
    )


def _model(root: Table) -> ModelTable | None:
    table = root.table("model", ("architecture", "min_probability"), free=True)
    if table is None:
        return None
    return ModelTable(table.text("architecture"), table.number("min_probability", 0, 0, 1), table.rest())


def _labels(root: Table) -> LabelTable:
    table = root.table("labels", ("column", "key", "names", "min_share"))
    if table is None:
        return LabelTable()
    if "column" in table.values and "key" in table.values:
        raise table.error(
            "[labels] has both column and key; labels come from a column, or from a labels JSON by key", "key"
        )
    key = table.text("key") if "key" in table.values else None
    column = table.text("column", "label") if key is None else None
    names = table.table("names", (), free=True)
    renamed = {k: names.text(k) for k in names.values} if names else {}
    return LabelTable(column, key, renamed, table.number("min_share", 0.5, 0, 1))


def _train(root: Table) -> TrainTable:
    table = root.table("train", ("split",), free=True)
    if table is None:
        return TrainTable()
    split = table.text("split", "session")
    if split not in SPLITS:
        raise table.error(f"split = {toml_value(split)}{nearest(split, SPLITS)}", "split")
    return TrainTable(split, table.rest())


def _source(root: Table) -> SourceTable:
    table = root.table("source", ("session", "subject", "keep"))
    if table is None:
        return SourceTable()
    subject, keep = (table.text(key) if key in table.values else None for key in ("subject", "keep"))
    return SourceTable(table.texts("session", ()), subject, keep)


def _alerts(root: Table) -> tuple[Mapping[str, Any], ...]:
    tables = root.tables("alerts", ("name", "label", "min_probability", "windows", "notify"))
    out = []
    for table in tables:
        rule: dict[str, Any] = {
            "label": list(table.texts("label")),
            "min_probability": table.number("min_probability", 0, 0, 1),
        }
        windows = table.number("windows", 1, 1)
        if windows % 1:
            raise table.error(f"windows = {windows:g}: expected a whole number", "windows")
        rule |= {"windows": int(windows), "notify": list(table.texts("notify", ()))}
        out.append(rule | ({"name": table.text("name")} if "name" in table.values else {}))
    return tuple(out)


__all__ = [
    "InputTable",
    "LabelTable",
    "ModelTable",
    "Recipe",
    "SourceTable",
    "TrainTable",
    "format_recipe",
    "load_recipe",
    "parse_recipe",
]
