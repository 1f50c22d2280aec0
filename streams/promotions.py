"""Promotion ⇄ JSON. In: what an alias of a recipe stands for from now on. Out: messages of ``kymo.models``, keyed ``recipe/alias``.

Times are Unix ns.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from streams.errors import BundleError, KymoError, MessageError
from streams.files import RULE, is_file_name
from streams.messages import read_object
from streams.settings import Settings
from streams.topics import Names

_TEXT = {"type": "string"}
_NAME = {"type": "string", "minLength": 1}
#: JSON Schema (draft 2020-12) of a Promotion.
PROMOTION_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Promotion",
    "description": "What an alias of a recipe stands for from now on. Running agents follow it.",
    "type": "object",
    "additionalProperties": True,
    "properties": {
        "recipe": _NAME,
        "alias": {**_NAME, "description": "champion: makes the events; shadow: scores the same windows aside"},
        "bundle": {**_TEXT, "description": "recipe@digest; empty for none (a champion: the one that ships with Kymo)"},
        "promoted_ns": {"type": "integer", "description": "Unix ns; of two promotions the larger counts"},
        "registry": {
            **_TEXT,
            "description": "where it was promoted, to be told; a worker loads from its own registry only",
        },
        "action": {"enum": ["promote", "rollback"]},
        "by": {**_TEXT, "description": "who"},
        "why": _TEXT,
    },
    "required": ["recipe", "alias", "bundle", "promoted_ns"],
}


@dataclass(frozen=True, slots=True)
class Promotion:
    """A message of ``kymo.models``."""

    recipe: str  # whose, and ``champion`` or ``shadow``
    alias: str
    bundle: str  # ``recipe@digest``; empty for none
    promoted_ns: int
    registry: str = ""  # folder or URL where it was promoted, for people: nothing is loaded from there
    action: str = "promote"  # ``promote`` or ``rollback``; who; the reason given
    by: str = ""
    why: str = ""

    @property
    def key(self) -> str:
        """Of the record."""
        return f"{self.recipe}/{self.alias}"

    def to_json(self) -> bytes:
        """The message."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, raw: bytes | str | None) -> Promotion:
        """The promotion of a message; members that are not known are left out.

        Examples
        --------
        >>> Promotion.from_json('{"recipe": "walk", "alias": "champion", "bundle": "", "promoted_ns": 1}').key
        'walk/champion'
        """
        try:
            found = read_object(raw)
        except MessageError as error:
            raise BundleError(f"promotion: {error}") from None
        known = {f.name: found[f.name] for f in fields(cls) if f.name in found}
        for name in PROMOTION_SCHEMA["required"]:
            if name not in known:
                raise BundleError(f"promotion: `{name}` is absent, expected a JSON object with it")
        for name, value in known.items():
            wanted = int if name == "promoted_ns" else str
            if type(value) is not wanted:
                raise BundleError(f"promotion: `{name}` is {str(value)[:40]!r}, expected {wanted.__name__}")
        recipe, at, digest = known["bundle"].partition("@")
        if not all(map(is_file_name, (known["recipe"], known["alias"], *((digest,) if at else ())))):
            raise BundleError(f"promotion: {str(known)[:80]} holds a name that is none, expected {RULE}")
        if known["bundle"] and (recipe, at) != (known["recipe"], "@"):
            raise BundleError(f"promotion: `bundle` is {known['bundle'][:80]!r}, expected {known['recipe']}@DIGEST")
        return cls(**known)


def announce(settings: Settings, promotion: Promotion) -> str:
    """Tell running agents."""
    if not settings.brokers:
        return "no broker is named or runs here"
    try:
        from streams.kafka.admin import ensure_topics
        from streams.kafka.publish import Publisher

        names = Names(settings.prefix)
        ensure_topics(settings, names)
        with Publisher(settings, names, delivery_timeout_s=15.0) as publisher:
            publisher.send("models", promotion.key, promotion.to_json())
            publisher.flush()
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except KymoError as error:
        return str(error)
    return ""
