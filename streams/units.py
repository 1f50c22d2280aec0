"""Units of measurements. In: units of a channel. Out: what to multiply its values with."""

from __future__ import annotations

import math

from kymo.streams.errors import FormatError

#: Quantity and factor to its SI unit. The standard gravity and the gauss are exact by definition.
UNITS: dict[str, tuple[str, float]] = {
    "m/s^2": ("acceleration", 1.0),
    "m/s2": ("acceleration", 1.0),
    "m/s²": ("acceleration", 1.0),
    "g": ("acceleration", 9.80665),
    "mg": ("acceleration", 9.80665e-3),
    "1/64 g": ("acceleration", 9.80665 / 64),  # of Empatica's wristbands
    "rad/s": ("angular rate", 1.0),
    "deg/s": ("angular rate", math.pi / 180),
    "mdeg/s": ("angular rate", math.pi / 180_000),
    "dps": ("angular rate", math.pi / 180),
    "°/s": ("angular rate", math.pi / 180),
    "T": ("magnetic flux density", 1.0),
    "mT": ("magnetic flux density", 1e-3),
    "uT": ("magnetic flux density", 1e-6),
    "µT": ("magnetic flux density", 1e-6),
    "nT": ("magnetic flux density", 1e-9),
    "field": ("magnetic flux density", 50e-6),  # the undisturbed field of a motion plan
    "gauss": ("magnetic flux density", 1e-4),
    "mgauss": ("magnetic flux density", 1e-7),
    "S": ("conductance", 1.0),
    "uS": ("conductance", 1e-6),
    "µS": ("conductance", 1e-6),
    "m": ("length", 1.0),
    "mm": ("length", 1e-3),
    "cm": ("length", 1e-2),
    "s": ("time", 1.0),
    "ms": ("time", 1e-3),
    "us": ("time", 1e-6),
    "V": ("voltage", 1.0),
    "mV": ("voltage", 1e-3),
    "uV": ("voltage", 1e-6),
    "rad": ("angle", 1.0),
    "deg": ("angle", math.pi / 180),
}


def factor(unit: str, target: str) -> float:
    """What to multiply a value in `unit` with to have it in `target`.

    Examples
    --------
    >>> factor("g", "m/s^2"), factor("odd", "odd")
    (9.80665, 1.0)
    """
    if unit == target or not unit or not target:
        return 1.0
    (quantity, size), (target_quantity, target_size) = UNITS.get(unit, ("", 1.0)), UNITS.get(target, ("", 1.0))
    if not quantity or quantity != target_quantity:
        raise FormatError(f"unit {unit!r} cannot be converted to {target!r}")
    return size / target_size


def unit_times(size: float, unit: str) -> str:
    """The unit of which one is `size` of another; empty where none is known.

    Examples
    --------
    >>> unit_times(1, "odd"), unit_times(50, "µT"), unit_times(3, "µT")
    ('odd', 'field', '')
    """
    if size == 1:
        return unit
    quantity, known = UNITS.get(unit, ("", 1.0))
    same = (name for name, row in UNITS.items() if row[0] == quantity and math.isclose(row[1], size * known))
    return next(same, "")
