"""The Earth's magnetic field at a place. In: latitude, longitude, height and a date, or dip and declination. Out: its direction.

The World Magnetic Model comes with the library pygeomag, for dates from 2010 to 2030.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime

from lab.synth.members import Members, Vector
from lab.synth.plan import NS, Start

#: Where a plan says nothing: level and due north, as in the published recordings.
NORTH: Vector = (0.0, 1.0, 0.0)
MODELS = ("wmm",)
_FIRST_YEAR, _BEHIND_YEAR = 2010, 2030


def field_of(found: Members | None, start: Start | None, start_ns: int) -> Vector:
    """The undisturbed field that a plan asks for, of length 1, in the world frame (east, north, up)."""
    if found is None:
        return NORTH
    if "model" not in found:
        dip, declination = (found.number(f"{name}_degrees", 0.0) for name in ("dip", "declination"))
        found.done()
        if abs(dip) > 90:
            found.fail("dip_degrees", f"is {dip:g}, expected -90 to 90")
        return along(dip, declination)
    found.text("model", allowed=MODELS)
    for name in ("dip_degrees", "declination_degrees"):
        if name in found:
            found.fail(name, "is given beside a model; leave one of the two out")
    when = _date(found, start_ns)
    if start is None:
        found.fail("model", "needs a place; give initialization.pose.origin")
    found.done()
    return along(*dip_and_declination(start.lat, start.lng, start.height, when))


def along(dip_degrees: float, declination_degrees: float) -> Vector:
    """Unit vector (east, north, up) of a field; dip counts downward, declination from north to east.

    Examples
    --------
    >>> [round(x, 3) for x in along(60, 90)]
    [0.5, 0.0, -0.866]
    """
    if dip_degrees == declination_degrees == 0:
        return NORTH
    dip, declination = math.radians(dip_degrees), math.radians(declination_degrees)
    level = math.cos(dip)
    return (level * math.sin(declination), level * math.cos(declination), -math.sin(dip))


def dip_and_declination(lat: float, lng: float, height_m: float, when: date) -> tuple[float, float]:
    """Dip and declination by the World Magnetic Model."""
    from pygeomag import GeoMag

    year = when.year + (when.timetuple().tm_yday - 1) / (366 if _leap(when.year) else 365)
    edition = max(2010, when.year - when.year % 5)
    model = GeoMag(base_year=None if edition == 2025 else float(edition))
    lng = (lng + 180.0) % 360.0 - 180.0
    found = model.calculate(glat=lat, glon=lng, alt=height_m / 1000.0, time=year, allow_date_outside_lifespan=False)
    return float(found.i), float(found.d)


def _date(found: Members, start_ns: int) -> date:
    if "date" in found:
        text = found.text("date")
        try:
            when = date.fromisoformat(text)
        except ValueError:
            found.fail("date", f"is {text!r}, expected a day such as 2026-03-01")
    else:
        when = datetime.fromtimestamp(start_ns // NS, UTC).date() if start_ns < 2**33 * NS else date.max
    if not _FIRST_YEAR <= when.year < _BEHIND_YEAR:
        found.fail(
            "date",
            f"{'is' if 'date' in found else 'is missing, and the start time means'} {when}; the model holds for "
            f"{_FIRST_YEAR} to {_BEHIND_YEAR - 1}",
        )
    return when


def _leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
