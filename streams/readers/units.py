"""Units as tables write them. In: names of columns, cells of a row of units. Out: units in one spelling, and a name's unit."""

from __future__ import annotations

import re

#: The spelling that is used, and others, in lower case, without brackets, `u` for micro.
_SPELLINGS = {
    "m/s^2": "m/s²,m/s2,m/s/s,m.s-2,m*s^-2,ms-2,ms^-2,m/sec^2,m/sec2,m/s**2,meters/second^2",
    "g": "g-force,gs,gforce",
    "mg": "milli-g",
    "deg/s": "°/s,º/s,dps,deg/sec,degrees/s,degrees/sec,degrees/second,degrees per second,deg.s-1,deg*s^-1",
    "mdeg/s": "mdps,millideg/s,m°/s",
    "rad/s": "rad/sec,radians/s,radians/second,radians per second,rad.s-1,rad*s^-1",
    "rad/s^2": "rad/s²,rad/s2",
    "deg": "°,º,degree,degrees",
    "rad": "radian,radians",
    "uT": "microtesla",
    "nT": "",
    "gauss": "",
    "mgauss": "milligauss",
    "V": "volt,volts",
    "mV": "millivolt,millivolts",
    "uV": "microvolt,microvolts",
    "uS": "microsiemens,usiemens",
    "kOhm": "kohms,kω",
    "Ohm": "ohms,ω",
    "mA": "",
    "°C": "ºc,degc,deg c,deg. c,celsius,degree celsius,degrees celsius",
    "Pa": "",
    "hPa": "mbar",
    "kPa": "",
    "mmHg": "",
    "lux": "lx",
    "dB": "",
    "%": "percent",
    "bpm": "beats/min",
    "rpm": "",
    "m": "meter,meters,metre,metres",
    "mm": "millimeter,millimeters",
    "cm": "centimeter,centimeters",
    "km": "",
    "m/s": "m/sec",
    "km/h": "kmh,kph",
    "px": "pixel,pixels",
    "N": "newton,newtons",
    "Nm": "n.m,n*m",
    "N/cm^2": "n/cm²,n/cm2",
    "W": "watt,watts",
    "kg": "",
    "Hz": "",
    "counts": "count,lsb",
}
#: Those that the size of letters tells apart.
_EXACT = {unit: unit for unit in ("T", "mT", "S", "mS", "A", "K", "s", "ms", "us", "W")} | {
    "µS": "uS",
    "uS": "uS",
    "C": "°C",
    **dict.fromkeys(("G", "mG", "Gs", "mGs", "w"), ""),
}
#: Of the Earth's gravity, or gauss.
_GAUSS = {"g": "gauss", "gs": "gauss", "mg": "mgauss", "mgs": "mgauss"}
_KNOWN = {other.lower(): unit for unit, others in _SPELLINGS.items() for other in (unit, *others.split(",")) if other}
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

    Examples
    --------
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


def said_behind(name: str) -> str:
    """What stands at the end of a name as a unit does; empty where that is nothing or a number."""
    texts = [text.translate(_AROUND).strip() for text in _behind(name)]
    return texts[0] if texts and not texts[0].isdigit() else ""


def unit_of_name(name: str) -> str:
    """The unit that a column's name ends with, in brackets or behind a comma; empty where it is none that is known.

    Examples
    --------
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
