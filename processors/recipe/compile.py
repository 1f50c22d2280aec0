"""From a recipe's tables to a chain. In: tables, and the document that knows their lines. Out: a Chain, checked, its windows, and notes.

Framed steps before the window get the window's grid as their block borders, so that a window is complete with its last
sample. Where the hop is no multiple of a step's column spacing, windows do not start on columns: that step and all
behind it then stand behind the window.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

from kymo.processors.branch import Branch
from kymo.processors.chain import Chain, PerWindow
from kymo.processors.intake import Intake, fill_lengths
from kymo.processors.join import Join
from kymo.processors.recipe.tables import InputTable, RecipeTables, Steps, WindowTable
from kymo.processors.recipe.toml import Document, toml_value
from kymo.processors.registry import STEPS, make_step
from kymo.processors.spec import SlowSpec, Spec
from kymo.processors.steps.frames import FramedSpec
from kymo.processors.steps.maps import Mask
from kymo.processors.windows import PaddedWindows, Windows
from kymo.streams.chunk import Format
from kymo.streams.errors import FormatError, RecipeError
from kymo.streams.schema import nearest

#: Steps that the compiler sets itself, and parameters that it sets on framed steps and on `mask`.
_COMPILER_STEPS = frozenset({"intake", "derived", "branch", "join", "windows", "padded_windows", "chain", "per_window"})
_COMPILER_PARAMETERS = frozenset({"chunk_frames", "chunk_phase", "inputs", "groups"})
_WHOLE = Fraction(1, 100)  # of a sample


@dataclass(frozen=True)
class PlacedStep:
    """A step, and how to make an error that names the line that it comes from."""

    spec: Spec  # unfitted
    fail: Callable[..., RecipeError]  # of a text and a key, if it is one key's

    def behind(self, fmt: Format) -> tuple[Spec, Format]:
        """The step as it stands behind what gives `fmt`, and what comes out then."""
        try:
            spec = self.spec.at(fmt)
            return spec, spec.output({fmt.stream: fmt})
        except FormatError as error:
            raise self.fail(str(error)) from None


def compile_chain(document: Document, tables: RecipeTables) -> tuple[Chain, Windows, tuple[str, ...]]:
    """Make a recipe's chain, from raw chunks to windows; notes say what had to move behind the window."""
    table, rate = tables.window, tables.rate_hz
    length, hop = (_samples(document, table, key, rate) for key in ("length_s", "hop_s"))
    entry: Spec = _join(document, tables) if tables.join is not None else _intake(tables.input[0], length)
    windows = PaddedWindows(length, hop) if table.pad else Windows(length, hop)
    steps = _read_steps(document, tables.steps, "steps")
    where = ("input", 0) if tables.join is None else ("join",)
    formats = [PlacedStep(entry, partial(document.error, where)).behind(tables.input[0].format)[1]]
    before: list[Spec] = []
    for step in steps:
        spec, out = step.behind(formats[-1])
        if hop % out.step:
            break
        before.append(spec)
        formats.append(out)
    moved = steps[len(before) :]
    _, fmt = PlacedStep(windows, partial(document.error, ("window",))).behind(formats[-1])
    inputs = entry.channels if isinstance(entry, Join) else {}
    behind = _behind([*moved, *_read_steps(document, table.steps, "window", "steps")], fmt, hop, inputs)
    chain = Chain((entry, *align(before, formats, windows), windows, *behind))
    if tables.model and tables.model.stateful:
        _check_rows(document, chain.output({tables.input[0].stream: tables.input[0].format}), windows)
    return chain, windows, _moved_notes(moved, formats[-1], windows)


def _intake(table: InputTable, window: int) -> Intake:
    """Make the entry of an input, of whose samples a window holds so many."""
    bridge, fill = fill_lengths(table.rate_hz, table.bridge_ms, table.max_missing, window)
    return Intake(table.channels, table.units, table.dtype, bridge, fill, table.max_missing)


def _join(document: Document, tables: RecipeTables) -> Join:
    """Make the entry of several inputs."""
    assert tables.join is not None
    branches = []
    for i, table in enumerate(tables.input):
        specs: list[Spec] = [_intake(table, 0)]
        fmt = specs[0].output({table.stream: table.format})
        for step in _read_steps(document, table.steps, "input", i, "steps"):
            spec, fmt = step.behind(fmt)
            specs.append(spec)
        chain, offset_ns = Chain(tuple(specs)), round(table.offset_ms * 10**6)
        rate, reach_ns = str(table.rate_hz), 0 if table.rate_hz else round(table.bridge_ms * 10**6)
        branches.append(Branch(table.stream, rate, chain, table.sample, table.required, offset_ns, reach_ns))
    try:
        return Join(tuple(branches), str(tables.join.rate_hz), tables.join.grid)
    except FormatError as error:
        raise document.error(("join",), str(error)) from None


def _read_steps(document: Document, steps: Steps, *table: str | int) -> list[PlacedStep]:
    """Read ``[[steps]]``, ``[[input.steps]]`` or ``[[window.steps]]``."""
    placed = []
    for i, step in enumerate(steps):
        fail = partial(document.error, (*table, i))
        placed.append(PlacedStep(_read_step(step, fail, per_window="window" in table), fail))
    slow = [step for step in placed if isinstance(step.spec, SlowSpec)]
    if slow and (len(slow) > 1 or document.values.get("join") is not None):
        raise slow[-1].fail(
            f"step {slow[-1].spec.name!r} is slow; a recipe has one slow step at most, and none with a [join]", "step"
        )
    return placed


def _read_step(parameters: Mapping[str, Any], fail: Callable[..., RecipeError], *, per_window: bool) -> Spec:
    name = parameters.get("step")
    offered = [
        n
        for n, cls in STEPS.items()
        if n not in _COMPILER_STEPS and (cls.after_window if per_window else cls.before_window)
    ]
    if not isinstance(name, str):
        raise fail(f"a step lacks its name: write step = one of {', '.join(sorted(offered))}")
    if name not in STEPS or name in _COMPILER_STEPS:
        raise fail(f"no step {name!r}{nearest(name, offered)}", "step")
    if name not in offered:
        side, table = ("behind", "[[steps]]") if per_window else ("before", "[[window.steps]]")
        raise fail(f"step {name!r} cannot stand {side} the window; move it to {table}", "step")
    values = {key: value for key, value in parameters.items() if key != "step"}
    try:
        return make_step(name, values, STEPS[name].learned | _COMPILER_PARAMETERS)
    except FormatError as error:
        # The key that the text names first is the one that is wrong.
        places = {key: re.search(rf"(?<!\w){re.escape(key)}(?!\w)", str(error)) for key in values}
        named = sorted((place.start(), key) for key, place in places.items() if place)
        raise fail(str(error), *[key for _, key in named[:1]]) from None


def _behind(steps: Sequence[PlacedStep], fmt: Format, hop: int, inputs: Mapping[str, Sequence[str]]) -> list[Spec]:
    """Check the steps behind the window, each on what the one before it gives; `inputs` are the channels that a join has of each."""
    behind: list[Spec] = []
    for step in steps:
        if not step.spec.after_window:
            raise step.fail(
                f"step {step.spec.name!r} makes no row at every hop of {hop} samples and cannot stand behind "
                f"the window; make the hop a multiple of its step"
            )
        placed = step.spec.behind(inputs, fmt) if isinstance(step.spec, Mask) else step.spec
        spec, fmt = replace(step, spec=PerWindow(placed)).behind(fmt)
        behind.append(spec)
    return behind


def align(specs: Sequence[Spec], formats: Sequence[Format], windows: Windows) -> list[Spec]:
    """Put the block borders of framed steps where windows end."""
    aligned = list(specs)
    # Windows need rows up to `end + k * hop` of the stream at hand: of the last first, then of what it is made from.
    end, hop = windows.rows(formats[-1]), int(windows.hop / formats[-1].step)
    for i in range(len(specs) - 1, -1, -1):
        spec, source, result = specs[i], formats[i], formats[i + 1]
        if isinstance(spec, FramedSpec):
            aligned[i] = replace(spec, chunk_frames=hop, chunk_phase=end % hop)
            end, hop = (end - 1) * spec.frame_step + spec.frame_length, hop * spec.frame_step
        elif source.step != result.step:
            end, hop = windows.rows(source), int(windows.hop / source.step)
    return aligned


def _check_rows(document: Document, fmt: Format, windows: Windows) -> None:
    """Refuse windows of `fmt` for a model that goes on from one to the next, where their rows are not one stream's, each once."""
    rows = int((fmt.rows or 0) * fmt.step)
    if windows.length != windows.hop != rows:
        raise document.error(
            ("model",),
            "[model] stateful = true: the model goes on from window to window, so each must begin where the last one "
            f"ended; make length_s equal to hop_s in [window], or have rows that come every {windows.hop} samples, "
            f"a window's new ones: these are {fmt.rows}, one every {fmt.step}",
            "stateful",
        )


def _moved_notes(moved: Sequence[PlacedStep], fmt: Format, windows: Windows) -> tuple[str, ...]:
    if not moved:
        return ()
    _, columns = moved[0].behind(fmt)
    rows, new_rows = windows.rows(columns), Fraction(windows.hop) / columns.step
    names = ", ".join(repr(step.spec.name) for step in moved)
    why = (
        f"the hop of {windows.hop} samples is no multiple of the {columns.step} between rows of {moved[0].spec.name!r}"
    )
    cost = (
        f"{rows} rows a window instead of {float(new_rows):.3g} new ones, {float(rows / new_rows):.1f} times the work"
    )
    return (f"{why}: {names} run for each window ({cost})",)


def _samples(document: Document, window: WindowTable, key: str, rate: Fraction) -> int:
    """Seconds as a number of samples, whole but for the digits that nobody writes."""
    seconds: Fraction = getattr(window, key)
    count = seconds * rate
    nearest_count = max(1, round(count))
    if abs(count - nearest_count) <= _WHOLE:
        return nearest_count
    raise document.error(
        ("window",),
        f"{key} = {toml_value(seconds)} is {float(count):g} samples at {float(rate):g} Hz, expected a whole number; "
        f"the nearest is {toml_value(seconds_of(nearest_count, rate))} ({nearest_count} samples)",
        key,
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
