"""Recipes: one use of the system in a TOML file. In: its path, name or text. Out: a Recipe with its compiled chain.

Everything is checked here: names, types, whole numbers of samples, and the formats from step to step, so that a wrong
recipe fails when it is loaded. Times stand in seconds, rates in hertz; windows are counted in raw input samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kymo.processors.chain import Chain, PerWindow
from kymo.processors.join import Join
from kymo.processors.recipe.compile import compile_chain
from kymo.processors.recipe.tables import InputTable, RecipeTables
from kymo.processors.recipe.toml import Document
from kymo.processors.steps.maps import Scale
from kymo.processors.windows import Windows
from kymo.streams.budget import IMAGE, WINDOW
from kymo.streams.chunk import Format
from kymo.streams.errors import RecipeError
from kymo.streams.files import read_text
from kymo.streams.recording import InputOptions, LabelOptions, ReadOptions
from kymo.streams.schema import nearest
from kymo.streams.topics import MIB, input_of
from kymo.streams.units import unit_times

#: Where recipes without a path are looked for: the current folder first, then those that come with Kymo.
INSTALLED = Path(__file__).resolve().parent.parent.parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Recipe(RecipeTables):
    """One use of the system: what its file says, and what becomes of it."""

    path: Path | None  # the file
    chain: Chain  # from raw chunks to windows; steps that learn are unfitted
    window_length: int  # raw input samples, as the hop
    window_hop: int
    notes: tuple[str, ...] = ()  # what its author should know, such as steps that had to move behind the window

    @property
    def inputs(self) -> tuple[InputTable, ...]:
        """What it takes; several only with a ``[join]``."""
        return self.input

    @property
    def stateful(self) -> bool:
        return self.model is not None and self.model.stateful

    def read_options(self) -> ReadOptions:
        """How files become this recipe's sessions."""
        return ReadOptions(
            inputs=tuple(
                InputOptions(t.stream, t.channels, t.rate_hz, t.units, self.taken_units(t), round(t.offset_ms * 10**6))
                for t in self.inputs
            ),
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
        """Format of the raw input; of several, of what they are joined to."""
        fmt, entry = self.inputs[0].format, self.chain.specs[0]
        return entry.output({fmt.stream: fmt}) if isinstance(entry, Join) else fmt

    def output_format(self) -> Format:
        """Format behind the whole chain: of the windows that the model sees."""
        fmt = self.input_format()
        return self.chain.output({fmt.stream: fmt})

    def matches(self, fmt: Format) -> str | None:
        """Why a raw stream is no input of this recipe: the first reason, in words; None if the recipe takes it."""
        if (table := self.input_of(fmt.stream)) is None:
            names = " or ".join(f"`{table.stream}`" for table in self.inputs)
            return f"stream `{fmt.stream}` is not {names}"
        return table.mismatch(fmt, self.taken_units(table))

    def input_of(self, stream: str) -> InputTable | None:
        """The input that a stream of this name is."""
        return input_of(stream, self.inputs)

    def taken_units(self, source: InputTable) -> tuple[str, ...]:
        """Units of an input's raw channels: its own, else of what a first step ``scale`` makes its units; empty where unknown."""
        entry, specs = self.chain.specs[0], self.chain.specs
        if isinstance(entry, Join):
            specs = entry.branches[self.inputs.index(source)].chain.specs
        first = specs[1] if len(specs) > 1 else None
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
    path = recipe_file(path_or_name)
    return parse_recipe(read_text(path, RecipeError), path)


def recipe_file(path_or_name: str | Path) -> Path:
    """The file that a path or a name is; a RecipeError where no recipe has the name."""
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
        return files[0]
    return path


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
    for number, table in enumerate(document.tables("input")):
        if "events" in table:
            why = "this recipe takes the events of others: `kymo run`, `replay`, `worker`, `up` and `doctor` take it, nothing else does"
            raise document.error(("input", number), why, "events")
    tables = document.read(RecipeTables)
    chain, windows, notes = compile_chain(document, tables)
    if why := _misfit(chain, tables.input[0].format):
        raise document.error(("window",), why)
    if tables.model is not None and chain.output({tables.input[0].stream: tables.input[0].format}).dtype == "jpeg":
        raise document.error(
            ("window",), "a model takes numbers, not images; add the step `decode` to [[window.steps]]"
        )
    return Recipe(
        **vars(tables), path=path, chain=chain, window_length=windows.length, window_hop=windows.hop, notes=notes
    )


def _misfit(chain: Chain, fmt: Format, most: int = WINDOW) -> str:
    """Why a session and one window of it on its way to the model take too much memory, in a sum; empty where they do not."""
    parts, total = list[str](), 0
    for spec in chain.specs:
        kept = spec.memory_bytes(fmt)
        fmt = spec.output({fmt.stream: fmt})
        if isinstance(spec, Windows):
            total += kept
            parts.append(f"a window of {_shape_of(fmt)} is {kept / MIB:,.1f} MiB")
        elif isinstance(spec, PerWindow):
            size = (fmt.rows or 0) * fmt.sample_bytes
            total += size
            parts.append(f"{size / MIB:,.1f} behind `{spec.spec.name}` ({_shape_of(fmt)})")
        elif kept:
            total += kept
            parts.append(f"`{spec.name}` keeps {kept / MIB:,.1f}")
    if fmt.dtype != "jpeg":
        copy = 4 * (fmt.rows or 0) * math.prod(fmt.shape)
        total += copy
        parts.append(f"{copy / MIB:,.1f} as the model takes it (float32)")
    if total <= most:
        return ""
    return (
        f"{', '.join(parts)}: {total / MIB:,.1f} MiB in all, expected {most / MIB:,.0f} at most, so that a worker stays under 1 GB; "
        "shorten length_s, or take smaller frames (the step `decode`), fewer channels or fewer samples a second"
    )


def _shape_of(fmt: Format) -> str:
    if fmt.dtype == "jpeg":
        return f"{fmt.rows} images of up to {IMAGE / MIB:g} MiB"
    return f"{' x '.join(str(length) for length in (fmt.rows, *fmt.shape))} {fmt.dtype}"
