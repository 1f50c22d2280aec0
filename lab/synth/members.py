"""Members of a motion plan, read with care. In: parsed JSON. Out: numbers, vectors, matrices; errors name the member.

A member's full name is written as a programmer would: ``segments[2].duration_s``. Members that nobody asked for are kept
in :attr:`Members.notes`, so that a misspelt one does not vanish in silence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

from streams.errors import PlanError

Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]
ZERO: Vector = (0.0, 0.0, 0.0)
#: No quantity in a plan is larger.
MOST = 1e30
IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


class Members:
    """The members of one JSON object of a plan."""

    def __init__(self, value: Any, name: str, path: str, notes: list[str] | None = None) -> None:
        self.name, self.path = name, path
        self.notes: list[str] = [] if notes is None else notes
        if not isinstance(value, dict):
            raise PlanError(f"{name or 'the plan'} is {_shown(value)}, expected a JSON object", path)
        self._value, self._asked = value, set[str]()

    def __contains__(self, key: str) -> bool:
        return self._value.get(key) is not None

    def full(self, key: str) -> str:
        """A member's full name."""
        return f"{self.name}.{key}" if self.name else key

    def fail(self, key: str, message: str) -> NoReturn:
        """Refuse a member."""
        raise PlanError(f"{self.full(key)} {message}", self.path)

    def get(self, key: str) -> Any:
        """A member as it stands; None where it is not there."""
        self._asked.add(key)
        return self._value.get(key)

    def number(
        self, key: str, default: float | None = None, *, least: float = -math.inf, over: float = -math.inf
    ) -> float:
        """A finite number, at least `least` and above `over`; without a default it must be there."""
        value = self.get(key)
        if value is None:
            if default is None:
                self.fail(key, "is missing, expected a number")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            self.fail(key, f"is {_shown(value)}, expected a number (at most 1e30 in size)")
        if value < least:
            self.fail(key, f"is {value}, expected {least:g} or more")
        if value <= over:
            self.fail(key, f"is {value}, expected a number above {over:g}")
        return float(value)

    def whole(self, key: str, default: int) -> int:
        """A whole number from 0, below 2**63."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            self.fail(key, f"is {_shown(value)}, expected a whole number from 0 to 2**63 - 1")
        return value

    def text(self, key: str, default: str | None = None, allowed: Sequence[str] = ()) -> str:
        """A text, one of those allowed."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or (allowed and value not in allowed):
            expected = f"one of {', '.join(allowed)}" if allowed else "a text"
            self.fail(
                key, f"is missing, expected {expected}" if value is None else f"is {_shown(value)}, expected {expected}"
            )
        return value

    def vector(self, key: str, default: Vector = ZERO, names: tuple[str, str, str] = ("x", "y", "z")) -> Vector:
        """An object of three numbers; one that is not there is the default's."""
        found = self.members(key)
        if found is None:
            return default
        x, y, z = (found.number(name, preset) for name, preset in zip(names, default, strict=True))
        found.done()
        return x, y, z

    def matrix(self, key: str, default: Matrix = IDENTITY) -> Matrix:
        """Three rows of three finite numbers that can be inverted."""
        rows = self.get(key)
        if rows is None:
            return default
        shaped = isinstance(rows, list) and len(rows) == 3 and all(isinstance(r, list) and len(r) == 3 for r in rows)
        if not shaped or any(
            isinstance(x, bool) or not isinstance(x, int | float) or not _finite(x) for r in rows for x in r
        ):
            self.fail(key, f"is {_shown(rows)}, expected three rows of three numbers")
        a, b, c = (tuple(float(x) for x in row) for row in rows)
        made: Matrix = ((a[0], a[1], a[2]), (b[0], b[1], b[2]), (c[0], c[1], c[2]))
        if singular(made):
            self.fail(key, f"is {_shown(rows)}, which cannot be inverted; expected a matrix of full rank")
        return made

    def members(self, key: str) -> Members | None:
        """A JSON object; None where it is not there."""
        value = self.get(key)
        return None if value is None else Members(value, self.full(key), self.path, self.notes)

    def done(self) -> None:
        """Note the members that nobody asked for."""
        self.notes += [
            f"{self.full(key)} is not known and has no effect" for key in self._value if key not in self._asked
        ]


def singular(matrix: Matrix) -> bool:
    """Whether a matrix cannot be inverted: its determinant is nothing beside its rows' lengths."""
    (a, b, c), (d, e, f), (g, h, i) = matrix
    size = math.prod(math.hypot(*row) for row in matrix)
    # A product of very small rows may become 0 while each of them can be inverted: a matrix of 1e-150 is no calibration.
    return size == 0 or abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)) <= 1e-12 * size


def _finite(value: float) -> bool:
    """Whether a number is one that can be reckoned with: products of a few of them must stay finite."""
    return -MOST <= value <= MOST


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
