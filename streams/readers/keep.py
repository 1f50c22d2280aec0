"""The `keep` expression of a recipe. In: ``usabledata == 1 and place in ("left", "right")`` and columns. Out: which
rows to keep.

It is parsed, never evaluated as Python: comparisons, ``in``, ``and``, ``or``, ``not`` of column names, numbers and
texts, nothing else.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.errors import SourceError

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

    Examples
    --------
    >>> keep = Keep("usable == 1 and place != 'foot'")
    >>> keep({"usable": ["1", "1.0", "0"], "place": ["hand", "foot", "hand"]}).tolist()
    [True, False, False]
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > _LIMIT:
            raise SourceError(f"keep: {len(text)} characters, expected at most {_LIMIT}")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise SourceError(f"keep = {text!r} is no expression; {_ALLOWED}") from None
        names: dict[str, None] = {}
        self._check(self._tree, names)
        self.columns = tuple(names)  # columns that it names

    def __call__(self, columns: Mapping[str, Sequence[str]]) -> NDArray[np.bool_]:
        """Which rows to keep: ``(n,)``."""
        length = len(columns[self.columns[0]])
        return np.broadcast_to(self._truth(self._tree, columns), (length,)).copy()

    def _check(self, node: ast.expr, names: dict[str, None]) -> None:
        if isinstance(node, ast.BoolOp):
            for part in node.values:
                self._check(part, names)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._check(node.operand, names)
        elif isinstance(node, ast.Compare):
            self._check_compare(node, names)
        else:
            raise self._refuse(node)

    def _check_compare(self, node: ast.Compare, names: dict[str, None]) -> None:
        before = len(names)
        self._check_operand(node.left, names)
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, (ast.In, ast.NotIn)):
                if not isinstance(right, (ast.Tuple, ast.List, ast.Set)) or not all(
                    _constant(item) for item in right.elts
                ):
                    raise self._refuse(right)
            elif type(op) in _COMPARE:
                self._check_operand(right, names)
            else:
                raise self._refuse(node)
        if len(names) == before and not any(isinstance(part, ast.Name) for part in ast.walk(node)):
            raise SourceError(f"keep = {self.text!r}: {ast.unparse(node)!r} names no column")

    def _check_operand(self, node: ast.expr, names: dict[str, None]) -> None:
        if isinstance(node, ast.Name):
            names[node.id] = None
        elif not _constant(node):
            raise self._refuse(node)

    def _refuse(self, node: ast.expr) -> SourceError:
        return SourceError(f"keep = {self.text!r}: {ast.unparse(node)!r} is not allowed; {_ALLOWED}")

    def _truth(self, node: ast.expr, columns: Mapping[str, Sequence[str]]) -> NDArray[np.bool_]:
        if isinstance(node, ast.BoolOp):
            parts = [self._truth(part, columns) for part in node.values]
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            out: NDArray[np.bool_] = join.reduce(parts)
            return out
        if isinstance(node, ast.UnaryOp):
            return np.logical_not(self._truth(node.operand, columns))
        assert isinstance(node, ast.Compare)
        sides = [node.left, *node.comparators]
        parts = [_compare(op, a, b, columns) for op, a, b in zip(node.ops, sides, sides[1:], strict=False)]
        both: NDArray[np.bool_] = np.logical_and.reduce(parts)
        return both


def _compare(op: ast.cmpop, left: ast.expr, right: ast.expr, columns: Mapping[str, Sequence[str]]) -> NDArray[np.bool_]:
    if isinstance(right, (ast.Tuple, ast.List, ast.Set)):
        found = [_compare(ast.Eq(), left, item, columns) for item in right.elts]
        inside = np.logical_or.reduce(found) if found else np.zeros(1, bool)
        return np.logical_not(inside) if isinstance(op, ast.NotIn) else inside
    as_text = any(isinstance(_value(side), str) for side in (left, right))
    a, b = (_operand(side, columns, as_text) for side in (left, right))
    if (
        not as_text
        and isinstance(left, ast.Name)
        and isinstance(right, ast.Name)
        and (np.isnan(a).any() or np.isnan(b).any())
    ):
        a, b = (_operand(side, columns, True) for side in (left, right))
    out: NDArray[np.bool_] = _COMPARE[type(op)](a, b)
    return out


def _operand(node: ast.expr, columns: Mapping[str, Sequence[str]], as_text: bool) -> NDArray[Any]:
    if isinstance(node, ast.Name):
        texts = columns[node.id]
        return (
            np.array([text.strip() for text in texts])
            if as_text
            else np.array([_number(text) for text in texts], float)
        )
    value = _value(node)
    return np.array([str(value) if as_text else float(value)])  # type: ignore[arg-type]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        # A text equals no number, as NaN does.
        return {"true": 1.0, "false": 0.0}.get(text.strip().lower(), float("nan"))


def _constant(node: ast.expr) -> bool:
    return isinstance(_value(node), (int, float, str))


def _value(node: ast.expr) -> object:
    """Value of a constant, also a negative number; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _value(node.operand)
        return -inner if isinstance(inner, (int, float)) else None
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str)) else None
