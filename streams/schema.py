"""What a value must be, said once by a type. In: what TOML, JSON or a variable holds, and a type. Out: the value as the type has it, or
:class:`SchemaError`; the type's JSON Schema.

What a type alone does not tell stands behind it in ``Annotated``: a text that describes the member, and Rules with JSON Schema's own
words (``minimum``, ``exclusiveMinimum``, ``maximum``, ``exclusiveMaximum``, ``enum``, ``minLength``, ``pattern``, ``minItems``,
``uniqueItems``). Others are of this file alone: ``expected``, the words of an error; ``alone``, a value may stand for a list of itself;
``texts``, what some texts stand for; ``kinds``, which dataclass the member ``kind`` names; ``rest``, takes the members that have no name.
What members must be together, a dataclass checks when it is made: it raises :class:`SchemaError` itself.
"""

from __future__ import annotations

import difflib
import operator
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from kymo.streams.errors import KymoError

T = TypeVar("T")
Path = tuple[str | int, ...]


class Rules(dict[str, Any]):
    """What a type alone does not tell of a value."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


#: A text that is not empty.
Name = Annotated[str, Rules(minLength=1)]
Share = Annotated[float, Rules(minimum=0, maximum=1)]
Count = Annotated[int, Rules(minimum=1)]
Whole = Annotated[int, Rules(minimum=0)]
Amount = Annotated[float, Rules(minimum=0)]
Positive = Annotated[float, Rules(exclusiveMinimum=0)]
Below1 = Annotated[float, Rules(minimum=0, exclusiveMaximum=1)]

ABSENT: Any = object()
_OWN_RULES = ("expected", "alone", "texts", "kinds", "rest")
_SCHEMA_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_LIMITS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "to below"}
_KEPT: dict[str, Callable[[Any, Any], bool]] = {  # whether a value keeps a rule
    "minimum": operator.ge,
    "exclusiveMinimum": operator.gt,
    "maximum": operator.le,
    "exclusiveMaximum": operator.lt,
    "enum": lambda value, words: value in words,
    "minLength": lambda value, least: len(value) >= least,
    "pattern": lambda value, pattern: re.search(pattern, value) is not None,
}
_YES = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}
_KINDS: dict[Any, Mapping[str, Kind]] = {}
_EXACT = re.compile(r"\d{1,12}(\.\d{1,12}|/0*[1-9]\d{0,11})?|\d(\.\d{1,12})?[eE]-?\d")


class SchemaError(KymoError):
    """A value that is not what its type says; as text, in the words of JSON."""

    def __init__(
        self, path: Path, expected: str = "", value: Any = ABSENT, *, why: str = "", known: Collection[str] = ()
    ) -> None:
        self.path, self.expected, self.value = path, expected, value
        self.why = why  # where it is no single value: all that is to be said
        self.known = known  # where the member has no such name: those that there are

    def __str__(self) -> str:
        if self.why:
            return self.why
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path).removeprefix(".")
        if self.known:
            return f"has no `{name}`{nearest(str(self.path[-1]), self.known)}"
        stands = "absent" if self.value is ABSENT else repr(self.value)[:40]
        return f"`{name}` is {stands}, expected {self.expected}"


@dataclass(frozen=True, slots=True)
class Kind:
    """A type taken apart."""

    base: Any  # a scalar, a dataclass or TypedDict, ``tuple``, ``list``, ``dict``, ``Union`` or ``Any``
    rules: Mapping[str, Any]
    inner: tuple[Kind, ...] = ()  # of items, of an object's values, or what a Union is of
    size: int | None = None  # how many items, where the type says it
    needed: bool = False  # of a member: whether it has no default

    @property
    def words(self) -> str:
        rules, words = self.rules, _WORDS.get(self.base, "a table")
        if "expected" in rules:
            return str(rules["expected"])
        if "enum" in rules:
            return f"one of {', '.join(str(word) for word in rules['enum'] if word != '')}"
        if self.base is Union:
            return " or ".join(dict.fromkeys(kind.words for kind in self.inner if kind.base is not NoneType))
        if self.base in (tuple, list):
            item = _WORDS.get(self.inner[0].base, "a table").partition(" ")[2]
            return f"an array of {f'{self.size} ' if self.size else ''}{item}s"
        words += " that is not empty" * ("minLength" in rules)
        return words + "".join(f" {text} {rules[name]}" for name, text in _LIMITS.items() if name in rules)

    def wrong(self, value: Any) -> SchemaError:
        texts = [text for text in self.rules.get("enum", ()) if isinstance(text, str)]
        near = difflib.get_close_matches(value, texts, 1) if isinstance(value, str) else ()
        return SchemaError((), self.words + "".join(f"; did you mean {text!r}?" for text in near), value)

    def take(self, value: Any) -> Any:
        base = self.base
        if base is Union:
            return self._one_of(value)
        if is_dataclass(base):
            if isinstance(value, base):  # type: ignore[arg-type]
                return value
            return self._of_kinds(value) if "kinds" in self.rules else read(base, value)  # type: ignore[arg-type]
        if base in (tuple, list):
            return self._items(value)
        if base is dict:
            if not isinstance(value, Mapping):
                raise self.wrong(value)
            return (
                {key: _inside(self.inner[0], item, key) for key, item in value.items()} if self.inner else plain(value)
            )
        if isinstance(value, str) and value in self.rules.get("texts", ()):
            return self.rules["texts"][value]
        result = plain(value) if base is Any else _scalar(base, value)
        if result is ABSENT or not all(_KEPT[name](result, rule) for name, rule in self.rules.items() if name in _KEPT):
            raise self.wrong(value)
        return result

    def take_text(self, text: str) -> Any:
        """The value of a text, such as a variable's."""
        if self.base is bool:
            return self.take(_YES.get(text.strip().lower(), text))
        try:
            return self.take(Decimal(text) if self.base in (int, float) else self.base(text))
        except (InvalidOperation, ValueError):
            raise self.wrong(text) from None

    def _of_kinds(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise self.wrong(value)
        name = _inside(Kind(str, {"enum": tuple(self.rules["kinds"])}), value.get("kind", ABSENT), "kind")
        return read(self.rules["kinds"][name], {key: item for key, item in value.items() if key != "kind"})

    def _one_of(self, value: Any) -> Any:
        problem = self.wrong(value)
        for kind in self.inner:
            try:
                return kind.take(value)
            except SchemaError as wrong:
                # Of several kinds the one that was meant says best what is wrong.
                if isinstance(value, Mapping if is_dataclass(kind.base) else kind.base):
                    problem = wrong
        raise problem

    def _items(self, value: Any) -> Any:
        items = value if isinstance(value, list | tuple) else [value] if self.rules.get("alone") else None
        if items is None or len(items) < self.rules.get("minItems", 0) or self.size not in (None, len(items)):
            raise self.wrong(value)
        if is_dataclass(self.inner[0].base) or self.inner[0].base is dict:
            return self.base(_inside(self.inner[0], item, i) for i, item in enumerate(items))
        try:
            result = self.base(map(self.inner[0].take, items))
        except SchemaError:  # of an array of scalars all is shown
            raise self.wrong(value) from None
        if self.rules.get("uniqueItems") and len(set(result)) < len(result):
            raise self.wrong(value)
        return result


def _inside(kind: Kind, value: Any, name: str | int) -> Any:
    try:
        return kind.take(value)
    except SchemaError as wrong:
        wrong.path = (name, *wrong.path)
        raise


def _scalar(base: Any, value: Any) -> Any:
    if base is Fraction:  # checked as text first: 1e999999999 would be a number of a billion digits
        exact = isinstance(value, int | float | Decimal | str) and not isinstance(value, bool)
        return Fraction(str(value)) if exact and _EXACT.fullmatch(str(value)) else ABSENT
    if base not in (int, float):
        return value if isinstance(value, base) else ABSENT
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return ABSENT
    number = float(value) if isinstance(value, Decimal) else value
    if base is float:
        return float(number) if abs(number) <= sys.float_info.max else ABSENT
    whole = int(number) if isinstance(value, Decimal) and float(value).is_integer() else number  # TOML's 5.0
    return whole if isinstance(whole, int) and fits(whole) else ABSENT


def fits(number: int) -> bool:
    return -(2**63) <= number < 2**63


def plain(value: Any) -> Any:
    """Turn decimals in a TOML value into floats."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


def kind_of(hint: Any) -> Kind:
    base, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    rules: dict[str, Any] = {}
    for note in notes:
        rules |= {"description": note} if isinstance(note, str) else note
    origin, inner = get_origin(base), get_args(base)
    if origin in (Union, UnionType):
        return Kind(Union, rules, tuple(kind_of(arg) for arg in inner))
    if origin in (tuple, list):
        size = len(inner) if origin is tuple and inner[-1] is not Ellipsis else None
        return Kind(origin, rules, (kind_of(inner[0]),), size)
    if origin in (dict, Mapping):
        return Kind(dict, rules, () if inner[1] is Any else (kind_of(inner[1]),))
    return Kind(base, rules)


def kinds_of(cls: Any) -> Mapping[str, Kind]:
    """Kinds of a dataclass's or TypedDict's members."""
    if cls not in _KINDS:
        hints = get_type_hints(cls, include_extras=True)
        members = {field.name: field for field in fields(cls)} if is_dataclass(cls) else dict.fromkeys(hints)
        needed = [n for n, f in members.items() if f and f.default is MISSING and f.default_factory is MISSING]
        _KINDS[cls] = {name: replace(kind_of(hints[name]), needed=name in needed) for name in members}
    return _KINDS[cls]


def read(cls: type[T], values: Any, strict: bool = True) -> T:
    """A dataclass from values by name; names that it lacks are refused, or left out where this is not strict."""
    if not isinstance(values, Mapping):
        raise SchemaError((), "a table", values)
    kinds = kinds_of(cls)
    rest = next((name for name, kind in kinds.items() if "rest" in kind.rules), None)
    known, members, more = kinds.keys() - {rest}, dict[str, Any](), dict[str, Any]()
    for name, value in values.items():
        if name in known:
            members[name] = _inside(kinds[name], value, name)
        elif rest and not difflib.get_close_matches(name, known, 1, 0.85):
            more[name] = plain(value)
        elif strict:
            raise SchemaError((name,), known=sorted(known))
    for name, kind in kinds.items():
        if kind.needed and name not in members:
            raise SchemaError((name,), kind.words)
    return cls(**members, **({rest: more} if rest else {}))


def check(value: Any) -> None:
    """Refuse a dataclass that was made of values which its types do not take."""
    for name, kind in kinds_of(type(value)).items():
        _inside(kind, getattr(value, name), name)


def nearest(word: str, words: Collection[str]) -> str:
    """``"; did you mean 'x'?"`` for the most similar of `words`, else a list of them."""
    names = sorted(words)
    match = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {match[0]!r}?" if match else f"; there are {', '.join(names)}"


def json_schema(cls: type, title: str, optional: Collection[str] = ()) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a dataclass, or of a TypedDict, whose members may all be left out.

    Its docstring is the description. A message needs the members that have no default, but for those that are `optional`.
    """
    needed = [name for name, kind in kinds_of(cls).items() if kind.needed and name not in optional]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "description": cls.__doc__,
        **_object_schema(cls, additionalProperties=True),
        **({"required": needed} if needed else {}),
    }


def _object_schema(cls: type, **rules: Any) -> dict[str, Any]:
    return {
        "type": "object",
        **rules,
        "properties": {name: _member_schema(kind) for name, kind in kinds_of(cls).items()},
    }


def _member_schema(kind: Kind) -> dict[str, Any]:
    rules = {name: rule for name, rule in kind.rules.items() if name not in _OWN_RULES}
    if "enum" in rules:
        return rules
    if is_typeddict(kind.base):
        return _object_schema(kind.base, **rules)
    inner = {"items" if kind.base is list else "additionalProperties": _member_schema(item) for item in kind.inner}
    return {"type": _SCHEMA_TYPES[kind.base], **inner, **rules}
