"""Which rows of a table are kept. In: a recipe's `keep`, such as ``usabledata == 1 and place in ("left", "right")``, and columns as text.
Out: a mask.

It is parsed, never evaluated as Python: comparisons, ``in``, ``and``, ``or``, ``not`` of column names, numbers and texts, nothing else.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kymo.streams.errors import SourceError
from kymo.streams.readers.cells import number_in

Columns = Mapping[str, Sequence[str]]
Mask = NDArray[np.bool_]
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ALLOWED = "allowed are comparisons, in, and, or, not of column names, numbers and texts"
_LIMIT = 2_000


class Keep:
    """A parsed expression.

    >>> keep = Keep("usable == 1 and place != 'foot'")
    >>> keep({"usable": ["1", "1.0", "0"], "place": ["hand", "foot", "hand"]}).tolist()
    [True, False, False]
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > _LIMIT:
            raise SourceError(f"keep: {len(text)} characters, expected at most {_LIMIT}")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise SourceError(f"keep = {text!r} is no expression; {_ALLOWED}") from None
        self._names: dict[str, None] = {}
        self._mask = self._condition(tree)
        self.columns = tuple(self._names)  # columns that it names

    def __call__(self, columns: Columns) -> Mask:
        """Which rows to keep: ``(n,)``."""
        length = len(columns[self.columns[0]])
        return np.broadcast_to(self._mask(columns), (length,)).copy()

    def _condition(self, node: ast.expr) -> Callable[[Columns], Mask]:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self._condition(node.operand)
            return lambda columns: np.logical_not(inner(columns))
        if isinstance(node, ast.BoolOp):
            parts = [self._condition(part) for part in node.values]
            join: Any = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return lambda columns: reduce(join, [part(columns) for part in parts])
        if not isinstance(node, ast.Compare):
            raise self._refusal(node)
        sides = [node.left, *node.comparators]
        parts = [self._comparison(*pair, node) for pair in zip(node.ops, sides, sides[1:], strict=False)]
        if not any(isinstance(part, ast.Name) for part in ast.walk(node)):
            raise SourceError(f"keep = {self.text!r}: {ast.unparse(node)!r} names no column")
        return lambda columns: reduce(np.logical_and, [part(columns) for part in parts])

    def _comparison(
        self, sign: ast.cmpop, left: ast.expr, right: ast.expr, node: ast.expr
    ) -> Callable[[Columns], Mask]:
        in_list = isinstance(sign, ast.In | ast.NotIn)
        if not in_list and type(sign) not in _COMPARE:
            raise self._refusal(node)
        for side in (left,) if in_list else (left, right):
            if isinstance(side, ast.Name):
                self._names[side.id] = None
            elif _constant(side) is None:
                raise self._refusal(side)
        if in_list:
            if not isinstance(right, ast.Tuple | ast.List | ast.Set) or None in map(_constant, right.elts):
                raise self._refusal(right)
            equal = [self._comparison(ast.Eq(), left, item, node) for item in right.elts]
            is_in, join = isinstance(sign, ast.In), cast(Any, np.logical_or)
            return lambda columns: reduce(join, [part(columns) for part in equal], np.False_) == is_in
        compare, text = _COMPARE[type(sign)], any(isinstance(_constant(side), str) for side in (left, right))

        def mask(columns: Columns) -> Mask:
            a, b = (_operand(side, columns, text) for side in (left, right))
            names = isinstance(left, ast.Name) and isinstance(right, ast.Name)
            if names and not text and (np.isnan(a).any() or np.isnan(b).any()):
                a, b = (_operand(side, columns, True) for side in (left, right))
            rows: Mask = compare(a, b)
            return rows

        return mask

    def _refusal(self, node: ast.expr) -> SourceError:
        return SourceError(f"keep = {self.text!r}: {ast.unparse(node)!r} is not allowed; {_ALLOWED}")


def _operand(node: ast.expr, columns: Columns, as_text: bool) -> NDArray[Any]:
    cells = [cell.strip() for cell in columns[node.id]] if isinstance(node, ast.Name) else [str(_constant(node))]
    if as_text:
        return np.array(cells)
    # A text equals no number, as NaN does.
    return np.array([np.nan if (number := number_in(cell)) is None else number for cell in cells], float)


def _constant(node: ast.expr) -> int | float | str | None:
    """Value of a constant, also a negative number; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _constant(node.operand)
        return -inner if isinstance(inner, int | float) else None
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str) else None
