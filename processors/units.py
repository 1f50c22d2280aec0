"""Units that are known. In: names of units. Out: the factor between two, or an error."""

from __future__ import annotations

import math

from streams.errors import FormatError

#: Quantity and factor to its SI unit. The standard gravity and the gauss are exact by definition.
_UNITS: dict[str, tuple[str, float]] = {
    "m/s^2": ("acceleration", 1.0),
    "m/s2": ("acceleration", 1.0),
    "m/s²": ("acceleration", 1.0),
    "g": ("acceleration", 9.80665),
    "mg": ("acceleration", 9.80665e-3),
    "rad/s": ("angular rate", 1.0),
    "deg/s": ("angular rate", math.pi / 180),
    "dps": ("angular rate", math.pi / 180),
    "°/s": ("angular rate", math.pi / 180),
    "T": ("magnetic flux density", 1.0),
    "mT": ("magnetic flux density", 1e-3),
    "uT": ("magnetic flux density", 1e-6),
    "µT": ("magnetic flux density", 1e-6),
    "nT": ("magnetic flux density", 1e-9),
    "gauss": ("magnetic flux density", 1e-4),
    "S": ("conductance", 1.0),
    "uS": ("conductance", 1e-6),
    "µS": ("conductance", 1e-6),
    "m": ("length", 1.0),
    "mm": ("length", 1e-3),
    "cm": ("length", 1e-2),
    "s": ("time", 1.0),
    "ms": ("time", 1e-3),
    "V": ("voltage", 1.0),
    "mV": ("voltage", 1e-3),
}


def factor(came: str, wanted: str) -> float:
    """What to multiply a value in `came` with to have it in `wanted`.

    Examples
    --------
    >>> factor("g", "m/s^2"), factor("odd", "odd")
    (9.80665, 1.0)
    """
    if came == wanted or not came or not wanted:
        return 1.0
    (a, f), (b, g) = _UNITS.get(came, ("", 1.0)), _UNITS.get(wanted, ("", 1.0))
    if not a or a != b:
        raise FormatError(f"unit {came!r} cannot be converted to {wanted!r}")
    return f / g
