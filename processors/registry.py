"""Every step there is, by name, and Specs from JSON. In: JSON values. Out: Specs. A new step is a line here."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from kymo.processors.branch import Branch
from kymo.processors.chain import Chain, PerWindow
from kymo.processors.intake import Derived, Intake
from kymo.processors.join import Join
from kymo.processors.spec import Spec
from kymo.processors.steps.animation import Animation
from kymo.processors.steps.conditioning import Filter, Normalise, Repair
from kymo.processors.steps.field import Deviation, Field
from kymo.processors.steps.images import Decode, Encode
from kymo.processors.steps.maps import Anew, Decibels, Log, Mask, Scale, Select, Standardise
from kymo.processors.steps.mel import AudioFbank, LogMel, Mel
from kymo.processors.steps.peaks import Beats, Features, Peaks, Rate
from kymo.processors.steps.pose import EquallySpaced, FillJoints, JointFeatures, NormalisePose, OneEuro
from kymo.processors.steps.resample import Resample
from kymo.processors.steps.spectrogram import Spectrogram
from kymo.processors.windows import PaddedWindows, Windows
from kymo.streams.errors import FormatError
from kymo.streams.schema import nearest

_ALL: tuple[type[Spec], ...] = (
    Intake,
    Derived,
    Branch,
    Join,
    Windows,
    PaddedWindows,
    Chain,
    PerWindow,
    Spectrogram,
    Select,
    Anew,
    Scale,
    Log,
    Decibels,
    Standardise,
    Mask,
    Mel,
    LogMel,
    Resample,
    Field,
    Deviation,
    AudioFbank,
    Decode,
    Encode,
    Filter,
    Normalise,
    Repair,
    Peaks,
    Beats,
    Rate,
    Features,
    Animation,
    FillJoints,
    NormalisePose,
    OneEuro,
    JointFeatures,
    EquallySpaced,
)
STEPS: dict[str, type[Spec]] = {spec.name: spec for spec in _ALL}


def make_step(name: str, parameters: Mapping[str, Any], hidden: Collection[str] = ()) -> Spec:
    """A Spec from its name and parameters, none of them `hidden`."""
    if name not in STEPS:
        raise FormatError(f"no step {name!r}{nearest(name, STEPS)}")
    cls = STEPS[name]
    known = {f.name for f in dataclasses.fields(cls)}.difference(hidden)
    for key in parameters:
        if key not in known:
            raise FormatError(f"step {name!r} has no parameter {key!r}{nearest(key, known) if known else ''}")
    try:
        return cls(**{key: _value(value) for key, value in parameters.items()})
    except TypeError as error:
        raise FormatError(f"step {name!r}: {str(error).partition('() ')[2] or error}") from None


def spec_from_json(described: Mapping[str, Any]) -> Spec:
    """The Spec that :meth:`Spec.to_json` described."""
    if not isinstance(described, Mapping) or not isinstance(described.get("step"), str):
        raise FormatError(f"{str(described)[:80]} describes no step, expected an object with a `step`")
    return make_step(described["step"], {k: v for k, v in described.items() if k != "step"})


def _value(value: Any) -> Any:
    if isinstance(value, Mapping) and "step" in value:
        return spec_from_json(value)
    if isinstance(value, list | tuple):
        return tuple(_value(v) for v in value)
    return value
