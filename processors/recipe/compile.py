"""From a recipe's steps to a chain. In: Specs with their lines, a window, a format. Out: a Chain, checked, and notes.

Framed steps before the window get the window's grid as their block borders, so that a window is complete with its last
sample. Where the hop is no multiple of a step's column spacing, windows do not start on columns: that step and all
behind it then stand behind the window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

from kymo.processors.chain import Chain, PerWindow
from kymo.processors.intake import Intake
from kymo.processors.registry import STEPS, make_step
from kymo.processors.spec import Spec
from kymo.processors.steps.frames import FramedSpec
from kymo.processors.windows import Windows
from kymo.streams.chunk import Format
from kymo.streams.errors import FormatError, RecipeError
from kymo.streams.schema import nearest

#: Steps that the compiler sets itself, and parameters that it sets on framed steps.
_COMPILER_STEPS = frozenset({"intake", "derived", "windows", "padded_windows", "chain", "per_window"})
_COMPILER_PARAMETERS = frozenset({"chunk_frames", "chunk_phase"})


@dataclass(frozen=True)
class PlacedStep:
    """A step as the recipe has it."""

    spec: Spec  # the step, unfitted
    fail: Callable[[str], RecipeError]  # makes an error that names the step's line

    def at(self, fmt: Format) -> PlacedStep:
        """Place the step behind what gives `fmt`."""
        try:
            return replace(self, spec=self.spec.at(fmt))
        except FormatError as error:
            raise self.fail(str(error)) from None


def read_step(parameters: Mapping[str, Any], fail: Callable[..., RecipeError], per_window: bool) -> PlacedStep:
    """Read one ``[[steps]]`` or ``[[window.steps]]`` table."""
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
    cls = STEPS[name]
    known = {f.name for f in fields(cls)} - cls.learned - _COMPILER_PARAMETERS
    for key in values:
        if key not in known:
            raise fail(f"step {cls.name!r} has no parameter {key!r}{nearest(key, known) if known else ''}", key)
    try:
        return PlacedStep(make_step(name, values), fail)
    except FormatError as error:
        words = str(error).replace(",", " ").replace(":", " ").split()
        raise fail(str(error), *[key for key in values if key in words][:1]) from None


@dataclass(frozen=True)
class RecipeSteps:
    """A recipe's window, and the steps that it has before and behind it."""

    windows: Windows
    before: Sequence[PlacedStep]
    behind: Sequence[PlacedStep]
    fail: Callable[[str], RecipeError]  # makes an error that names the window's line


def compile_chain(intake: Intake, raw: Format, steps: RecipeSteps) -> tuple[Chain, tuple[str, ...]]:
    """Order a recipe's steps to a chain; notes say what had to move behind the window."""
    windows = steps.windows
    formats = [intake.output({raw.stream: raw})]
    before: list[PlacedStep] = []
    for step in (step.at(formats[-1]) for step in steps.before):
        out = _output(step.spec, formats[-1], step.fail)
        if windows.hop % out.step:
            break
        before.append(step)
        formats.append(out)
    moved = list(steps.before[len(before) :])
    specs = align([step.spec for step in before], formats, windows)
    fmt = _output(windows, formats[-1], steps.fail)
    behind = _behind([*moved, *steps.behind], fmt, windows)
    return Chain((intake, *specs, windows, *behind)), _moved_notes(moved, formats[-1], windows)


def _behind(steps: Sequence[PlacedStep], fmt: Format, windows: Windows) -> list[Spec]:
    """Check the steps behind the window, each on what the one before it gives."""
    behind: list[Spec] = []
    for step in steps:
        if not step.spec.after_window:
            raise step.fail(
                f"step {step.spec.name!r} makes no row at every hop of {windows.hop} samples and cannot stand behind "
                f"the window; make the hop a multiple of its step"
            )
        behind.append(PerWindow(step.spec))
        fmt = _output(behind[-1], fmt, step.fail)
    return behind


def _output(spec: Spec, fmt: Format, fail: Callable[[str], RecipeError]) -> Format:
    try:
        return spec.output({fmt.stream: fmt})
    except FormatError as error:
        raise fail(str(error)) from None


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


def _moved_notes(moved: Sequence[PlacedStep], fmt: Format, windows: Windows) -> tuple[str, ...]:
    if not moved:
        return ()
    columns = _output(moved[0].spec, fmt, moved[0].fail)
    rows, new_rows = windows.rows(columns), Fraction(windows.hop) / columns.step
    names = ", ".join(repr(step.spec.name) for step in moved)
    why = (
        f"the hop of {windows.hop} samples is no multiple of the {columns.step} between rows of {moved[0].spec.name!r}"
    )
    cost = (
        f"{rows} rows a window instead of {float(new_rows):.3g} new ones, {float(rows / new_rows):.1f} times the work"
    )
    return (f"{why}: {names} run for each window ({cost})",)
