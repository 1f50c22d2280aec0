"""Turns of 3-axis groups. In: signals ``(n, time, channels)`` float32. Out: the same shape, as if the sensor were worn turned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from models.data.augment_kinds import Random, Variation, Windows
from streams.chunk import Format
from streams.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class Rotate(Variation):
    """A turn about a random axis by a random angle."""

    degrees: float = 15.0  # largest angle, 0 to 180
    # channels of each group, x, y, z; by default those whose names differ in x, y and z alone, such as ax, ay, az
    groups: Sequence[Sequence[str]] = ()
    together: bool = True  # all groups of a window turn as one (they sit in one device); else each by itself
    kind: ClassVar[str] = "rotate"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("degrees", self.degrees, 0, 180)
        if not isinstance(self.together, bool):
            raise TrainingError(f"[[train.augment]] rotate: together = {self.together!r}, expected true or false")
        if not isinstance(self.groups, list | tuple) or not all(
            isinstance(group, list | tuple) and len(group) == 3 and all(isinstance(c, str) for c in group)
            for group in self.groups
        ):
            raise TrainingError("[[train.augment]] rotate: groups: expected arrays of three channel names each")

    def fit(self, fmt: Format) -> Callable[[Windows, Random], Windows]:
        """See :meth:`Variation.fit`."""
        if len(fmt.shape) != 1:
            raise TrainingError(
                f"[[train.augment]] rotate: defined on signals (time, channels), `{fmt.stream}` has {len(fmt.shape) + 1} "
                f"axes; leave it out"
            )
        groups = self.groups or three_axes(fmt.channels)
        absent = [channel for group in groups for channel in group if channel not in fmt.channels]
        if absent or not groups:
            raise TrainingError(
                f"[[train.augment]] rotate: {'no channel ' + absent[0] if absent else 'no channels x, y, z of a group'} "
                f"among {', '.join(fmt.channels)}; name them in groups"
            )
        columns = [[fmt.channels.index(channel) for channel in group] for group in groups]
        return lambda windows, random: self._turned(windows, random, columns)

    def _turned(self, windows: Windows, random: Random, columns: list[list[int]]) -> Windows:
        out = windows.copy()
        turns = self._turns(len(windows), random)
        for number, group in enumerate(columns):
            if number and not self.together:
                turns = self._turns(len(windows), random)
            out[..., group] = np.einsum("nij,ntj->nti", turns, windows[..., group])
        return out

    def _turns(self, count: int, random: Random) -> Windows:
        """Rotation matrices ``(count, 3, 3)``, by Rodrigues's formula."""
        axis = random.standard_normal((count, 3))
        x, y, z = (axis / np.linalg.norm(axis, axis=1, keepdims=True)).T
        angle = np.deg2rad(random.uniform(0, self.degrees, count))[:, None, None]
        zero = np.zeros(count)
        cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(count, 3, 3)
        turned = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
        matrices: Windows = turned.astype(np.float32)
        return matrices


def three_axes(channels: Sequence[str]) -> list[tuple[str, str, str]]:
    """Triples of channels whose names differ only in one letter, x, y, z.

    Examples
    --------
    >>> three_axes(["ax", "ay", "az", "temperature", "gyro_x.left", "gyro_y.left", "gyro_z.left", "x"])
    [('ax', 'ay', 'az'), ('gyro_x.left', 'gyro_y.left', 'gyro_z.left')]
    """
    there = set(channels)
    found = []
    for channel in channels:
        for i, letter in enumerate(channel):
            if letter in "xX":
                y, z = (channel[:i] + chr(ord(letter) + k) + channel[i + 1 :] for k in (1, 2))
                if y in there and z in there:
                    found.append((channel, y, z))
    return found
