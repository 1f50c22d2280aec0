"""Motion plans that several tests share."""

from __future__ import annotations

from typing import Any


def plan(*segments: dict[str, Any], rate: float = 100, **initialization: Any) -> dict[str, Any]:
    """A plan's JSON; without segments one that stands still for a second."""
    return {
        "initialization": {"sample_rate": rate} | initialization,
        "segments": list(segments) or [{"duration_s": 1.0}],
    }


def turning(roll: float, pitch: float, yaw: float, duration_s: float = 1.0, **more: Any) -> dict[str, Any]:
    """A segment that turns by so many degrees."""
    angles = {"roll": roll, "pitch": pitch, "yaw": yaw}
    return {"duration_s": duration_s, "rotation_rpy_degrees": angles} | more
