"""Promotion ⇄ JSON. In: what an alias of a recipe stands for from now on. Out: messages of ``kymo.models``, keyed ``recipe/alias``.

Times are Unix ns.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

from kymo.streams.errors import BundleError, KymoError, MessageError
from kymo.streams.files import RULE, is_file_name
from kymo.streams.messages import read_object
from kymo.streams.schema import Name, Rules, SchemaError, json_schema, read
from kymo.streams.settings import Settings
from kymo.streams.topics import Names


@dataclass(frozen=True, slots=True)
class Promotion:
    """What an alias of a recipe stands for from now on. Running agents follow it."""

    recipe: Name
    alias: Annotated[Name, "champion: makes the events; shadow: scores the same windows aside"]
    bundle: Annotated[str, "recipe@digest; empty for none (a champion: the one that ships with Kymo)"]
    promoted_ns: Annotated[int, "Unix ns; of two promotions the larger counts"]
    registry: Annotated[str, "where it was promoted, to be told; a worker loads from its own registry only"] = ""
    action: Annotated[str, Rules(enum=["promote", "rollback"])] = "promote"
    by: Annotated[str, "who"] = ""
    why: str = ""

    @property
    def key(self) -> str:
        return f"{self.recipe}/{self.alias}"

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, raw: bytes | str | None) -> Promotion:
        """The promotion of a message; members that are not known are left out.

        >>> Promotion.from_json('{"recipe": "walk", "alias": "champion", "bundle": "", "promoted_ns": 1}').key
        'walk/champion'
        """
        try:
            message = read_object(raw)
            promotion = read(cls, message, strict=False)
        except (MessageError, SchemaError) as error:
            raise BundleError(f"promotion: {error}") from None
        recipe, at, digest = promotion.bundle.partition("@")
        if not all(map(is_file_name, (promotion.recipe, promotion.alias, *((digest,) if at else ())))):
            raise BundleError(f"promotion: {str(message)[:80]} holds a name that is none, expected {RULE}")
        if promotion.bundle and (recipe, at) != (promotion.recipe, "@"):
            raise BundleError(f"promotion: `bundle` is {promotion.bundle[:80]!r}, expected {promotion.recipe}@DIGEST")
        return promotion


PROMOTION_SCHEMA = json_schema(Promotion, "Promotion")


def announce(settings: Settings, promotion: Promotion) -> str:
    """Tell running agents."""
    if not settings.brokers:
        return "no broker is named or runs here"
    try:
        from kymo.streams.kafka.admin import ensure_topics
        from kymo.streams.kafka.publish import Publisher

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
