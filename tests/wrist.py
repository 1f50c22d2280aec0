"""Wrist accelerometer recordings, made up: 14 activities, several subjects. Out: CSV files, or arrays (n, 3) in g.

SYNTHETIC. It stands for data that a user may bring (3 channels at 32 Hz, trials of 4 to 290 s, `label` and `subject`
columns); no figure that rests on it says anything about people. An activity is a posture (where gravity points), a
movement (a rate, a size, overtones, how much each axis takes part) and bursts; a subject has a way to wear the watch, a
pace and a vigour; a trial varies them a little and drifts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

RATE_HZ = 32
#: Name, tilt (degrees from upright, around), rate (Hz), size (g), share of the time moving, overtones.
ACTIVITIES = (
    ("brush_teeth", (70, 20), 3.6, 0.35, 1.0, 0.3),
    ("climb_stairs", (20, 10), 1.7, 0.30, 1.0, 0.6),
    ("comb_hair", (95, 30), 1.1, 0.40, 0.7, 0.2),
    ("descend_stairs", (20, 10), 2.0, 0.36, 1.0, 0.9),
    ("drink_glass", (60, 60), 0.25, 0.25, 0.5, 0.1),
    ("eat_meat", (45, 80), 0.9, 0.18, 0.7, 0.4),
    ("eat_soup", (50, 70), 0.45, 0.22, 0.8, 0.1),
    ("get_up_bed", (60, 0), 0.3, 0.45, 0.4, 0.2),
    ("lie_down_bed", (40, 180), 0.3, 0.40, 0.4, 0.2),
    ("pour_water", (65, 90), 0.35, 0.28, 0.6, 0.2),
    ("sit_down_chair", (30, 40), 0.4, 0.32, 0.35, 0.3),
    ("stand_up_chair", (35, 220), 0.4, 0.34, 0.35, 0.3),
    ("use_telephone", (100, 110), 0.2, 0.12, 0.3, 0.2),
    ("walk", (15, 10), 1.9, 0.28, 1.0, 0.4),
)


def trial(activity: int, subject: int, number: int, seconds: float, seed: int = 0) -> np.ndarray:
    """One trial, ``(n, 3)`` in g."""
    person = np.random.default_rng([seed, 1, subject])
    pace, vigour = person.uniform(0.85, 1.18), person.uniform(0.7, 1.35)
    worn = person.normal(0, 14, 2)
    random = np.random.default_rng([seed, 2, subject, activity, number])
    _, tilt, rate, size, busy, overtones = ACTIVITIES[activity]
    n = round(seconds * RATE_HZ)
    t = np.arange(n) / RATE_HZ
    drift = np.cumsum(random.standard_normal((n, 2)), 0) * 0.15
    angle = np.radians(np.array(tilt) + worn + random.normal(0, 9, 2) + drift)
    gravity = np.column_stack(
        [np.sin(angle[:, 0]) * np.cos(angle[:, 1]), np.sin(angle[:, 0]) * np.sin(angle[:, 1]), np.cos(angle[:, 0])]
    )
    phase = 2 * np.pi * np.cumsum(rate * pace * (1 + 0.06 * random.standard_normal(n))) / RATE_HZ
    own = np.random.default_rng([seed, 3, activity]).uniform(0.3, 1.0, 3)
    moves = _bursts(t, busy, random)[:, None]
    wave = np.column_stack([np.sin(phase + shift) + overtones * np.sin(2 * phase + 2 * shift) for shift in own * np.pi])
    out: np.ndarray = gravity + moves * size * vigour * own * wave + 0.03 * random.standard_normal((n, 3))
    return out.astype(np.float32)


def _bursts(t: np.ndarray, busy: float, random: np.random.Generator) -> np.ndarray:
    """From 0, still, to 1, moving: smooth, for a share of the time."""
    if busy >= 1:
        return np.ones(len(t))
    slow = np.sin(2 * np.pi * (0.22 * t + random.uniform())) + 0.4 * np.sin(2 * np.pi * (0.13 * t + random.uniform()))
    return 1 / (1 + np.exp(-6 * (slow - np.quantile(slow, 1 - busy))))


def write_trials(folder: Path, subjects: range, trials: int, longest_s: float = 290.0, seed: int = 0) -> None:
    """CSV files ``x,y,z,label,subject`` with a time column, one a trial of 4 s to `longest_s`."""
    folder.mkdir(parents=True, exist_ok=True)
    for subject in subjects:
        for activity, (name, *_) in enumerate(ACTIVITIES):
            for number in range(trials):
                random = np.random.default_rng([seed, 4, subject, activity, number])
                seconds = 4 * (longest_s / 4) ** random.beta(0.8, 2.2)  # most are short
                data = trial(activity, subject, number, seconds, seed)
                rows = [
                    f"{i / RATE_HZ:.5f},{x:.4f},{y:.4f},{z:.4f},{name},p{subject}" for i, (x, y, z) in enumerate(data)
                ]
                path = folder / f"p{subject}-{name}-{number}.csv"
                path.write_text("\n".join(["t,x,y,z,label,subject", *rows]) + "\n")
