"""Units of measurements. In: units of a channel, names of columns, cells of a row of units. Out: units in the spelling that is
used, and what to multiply values with."""

from __future__ import annotations

import math
import re

from kymo.streams.errors import FormatError

#: Quantity and factor to its SI unit, where one is known, and other spellings, in lower case, without brackets, `u` for micro. The standard
#: gravity and the gauss are exact by definition.
UNITS: dict[str, tuple[str, float, str]] = {
    "m/s^2": ("acceleration", 1.0, "m/s²,m/s2,m/s/s,m.s-2,m*s^-2,ms-2,ms^-2,m/sec^2,m/sec2,m/s**2,meters/second^2"),
    "g": ("acceleration", 9.80665, "g-force,gs,gforce"),
    "mg": ("acceleration", 9.80665e-3, "milli-g"),
    "1/64 g": ("acceleration", 9.80665 / 64, ""),  # of Empatica's wristbands
    "rad/s": ("angular rate", 1.0, "rad/sec,radians/s,radians/second,radians per second,rad.s-1,rad*s^-1"),
    "deg/s": (
        "angular rate",
        math.pi / 180,
        "°/s,º/s,dps,deg/sec,degrees/s,degrees/sec,degrees/second,degrees per second,deg.s-1,deg*s^-1",
    ),
    "mdeg/s": ("angular rate", math.pi / 180_000, "mdps,millideg/s,m°/s"),
    "rad/s^2": ("", 1.0, "rad/s²,rad/s2"),
    "T": ("magnetic flux density", 1.0, ""),
    "mT": ("magnetic flux density", 1e-3, ""),
    "uT": ("magnetic flux density", 1e-6, "microtesla"),
    "nT": ("magnetic flux density", 1e-9, ""),
    "field": ("magnetic flux density", 50e-6, ""),  # the undisturbed field of a motion plan
    "gauss": ("magnetic flux density", 1e-4, ""),
    "mgauss": ("magnetic flux density", 1e-7, "milligauss"),
    "S": ("conductance", 1.0, ""),
    "mS": ("conductance", 1e-3, "millisiemens"),
    "uS": ("conductance", 1e-6, "microsiemens,usiemens"),
    "nS": ("conductance", 1e-9, "nanosiemens"),
    "m": ("length", 1.0, "meter,meters,metre,metres"),
    "mm": ("length", 1e-3, "millimeter,millimeters"),
    "cm": ("length", 1e-2, "centimeter,centimeters"),
    "s": ("time", 1.0, ""),
    "ms": ("time", 1e-3, ""),
    "us": ("time", 1e-6, ""),
    "V": ("voltage", 1.0, "volt,volts"),
    "mV": ("voltage", 1e-3, "millivolt,millivolts"),
    "uV": ("voltage", 1e-6, "microvolt,microvolts"),
    "rad": ("angle", 1.0, "radian,radians"),
    "deg": ("angle", math.pi / 180, "°,º,degree,degrees"),
    "kOhm": ("", 1.0, "kohms,kω"),
    "Ohm": ("", 1.0, "ohms,ω"),
    "°C": ("", 1.0, "ºc,degc,deg c,deg. c,celsius,degree celsius,degrees celsius"),
    "°F": ("", 1.0, "ºf,degf,deg f,deg. f,fahrenheit,degrees fahrenheit"),
    "K": ("", 1.0, "kelvin"),
    "hPa": ("", 1.0, "mbar"),
    "lux": ("", 1.0, "lx"),
    "%": ("", 1.0, "percent"),
    "bpm": ("", 1.0, "beats/min"),
    "m/s": ("", 1.0, "m/sec"),
    "km/h": ("", 1.0, "kmh,kph"),
    "px": ("", 1.0, "pixel,pixels"),
    "N": ("", 1.0, "newton,newtons"),
    "Nm": ("", 1.0, "n.m,n*m"),
    "N/cm^2": ("", 1.0, "n/cm²,n/cm2"),
    "W": ("", 1.0, "watt,watts"),
    "counts": ("", 1.0, "count,lsb"),
    **dict.fromkeys(("mA", "Pa", "kPa", "mmHg", "dB", "rpm", "km", "kg", "Hz"), ("", 1.0, "")),
}
#: Those that the size of letters tells apart.
_CASED = ("T", "mT", "S", "mS", "A", "K", "s", "ms", "us", "W")
_EXACT = (
    {unit: unit for unit in _CASED}
    | {"µS": "uS", "uS": "uS", "C": "°C"}
    | dict.fromkeys(("G", "mG", "Gs", "mGs", "w"), "")
)
#: Of the Earth's gravity, or gauss.
_GAUSS = {"g": "gauss", "gs": "gauss", "mg": "mgauss", "mgs": "mgauss"}
_KNOWN = {
    text.lower(): unit
    for unit, (_, _, others) in UNITS.items()
    for text in (*([] if unit in (*_CASED, "field", "1/64 g") else [unit]), *others.split(","))
    if text
}
#: Signs that look the same, and what others make of UTF-8.
_MISREAD = (("\u03bc", "µ"), ("\u2126", "Ω"), ("Î¼", "µ"), ("Âµ", "µ"), ("Â²", "²"), ("Â°", "°"))
_NO_UNIT = ("", "-", "--", "no_units", "none", "n/a", "na", "unitless", "1", "dimensionless")
_AROUND = str.maketrans("", "", "()[]{}'")


def known_unit(text: str) -> str:
    """A unit in the spelling that is used; empty where it is none that is known."""
    for wrong, right in _MISREAD:
        text = text.replace(wrong, right)
    plain = " ".join(text.translate(_AROUND).split())
    return _EXACT[plain] if plain in _EXACT else _KNOWN.get(plain.replace("µ", "u").lower(), "")


def unit_in(cell: str) -> str:
    """The unit that a cell of a row of units holds; as it stands where it is none that is known.

    >>> unit_in("m/(s^2)"), unit_in("[µT]"), unit_in("no_units"), unit_in("local_flux")
    ('m/s^2', 'uT', '', 'local_flux')
    """
    plain = cell.translate(_AROUND).strip()
    return "" if plain.lower() in _NO_UNIT else known_unit(cell) or plain


def _behind(name: str) -> list[str]:
    """What stands in brackets or behind a comma at the end of a name, with and without outer brackets."""
    plain = name.rstrip()
    if plain.endswith((")", "]", "}")):
        return [plain[match.start() :] for match in re.finditer(r"[(\[{]", plain)]
    return [plain.rpartition(",")[2]] if "," in plain else []


def text_behind(name: str) -> str:
    """What stands at the end of a name as a unit does; empty where that is nothing or a number."""
    texts = [text.translate(_AROUND).strip() for text in _behind(name)]
    return texts[0] if texts and not texts[0].isdigit() else ""


def unit_of_name(name: str) -> str:
    """The unit that a column's name ends with, in brackets or behind a comma; empty where it is none that is known.

    >>> unit_of_name("Acceleration x (m/s²)"), unit_of_name("Gyr X [°/s]"), unit_of_name("gyro_rad[0]")
    ('m/s^2', 'deg/s', '')
    >>> unit_of_name("accelerometerAccelerationX(G)"), unit_of_name("LT RECT.FEM.,uV"), unit_of_name("x (raw)")
    ('g', 'uV', '')
    """
    for text in _behind(name):
        plain = text.translate(_AROUND).strip()
        if gauss := _GAUSS.get(plain.lower()):
            if re.search("acc|grav", name, re.IGNORECASE):
                return gauss.removesuffix("auss")
            if re.search("mag(?!nitude|e)", name, re.IGNORECASE) or ("G" in plain and plain != "G"):
                return gauss
            return "" if plain == "G" else gauss.removesuffix("auss")
        if unit := known_unit(text):
            return unit
    return ""


def factor(unit: str, target: str) -> float:
    """What to multiply a value in `unit` with to have it in `target`.

    >>> factor("g", "m/s^2"), factor("odd", "odd")
    (9.80665, 1.0)
    """
    if unit == target or not unit or not target:
        return 1.0
    (quantity, size), (target_quantity, target_size) = _size_of(unit), _size_of(target)
    if not quantity or quantity != target_quantity:
        raise FormatError(f"unit {unit!r} cannot be converted to {target!r}")
    return size / target_size


def unit_times(size: float, unit: str) -> str:
    """The unit of which one is `size` of another; empty where none is known.

    >>> unit_times(1, "odd"), unit_times(50, "µT"), unit_times(3, "µT")
    ('odd', 'field', '')
    """
    if size == 1:
        return unit
    quantity, known = _size_of(unit)
    same = (name for name, row in UNITS.items() if row[0] == quantity != "" and math.isclose(row[1], size * known))
    return next(same, "")


def _size_of(unit: str) -> tuple[str, float]:
    """Quantity of a unit, empty where none is known, and factor to its SI unit."""
    return UNITS.get(unit, UNITS.get(known_unit(unit), ("", 1.0, "")))[:2]
