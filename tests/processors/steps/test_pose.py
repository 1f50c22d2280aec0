"""Steps for poses, against the same written out joint by joint."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from checks import check_cut, check_snapshot, run
from numpy.typing import NDArray
from strategies import Run

from kymo.processors.chain import Chain, PerWindow
from kymo.processors.registry import make_step
from kymo.processors.windows import PaddedWindows, Windows
from kymo.streams.chunk import Chunk, Format, Header, signal_format
from kymo.streams.errors import FormatError

Poses = NDArray[np.float64]
RATE = 10
SIDES = [
    f"{side}_{part}" for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle") for side in ("left", "right")
]
NAMES = ["nose", *SIDES]


def fmt_of(names: list[str]) -> Format:
    return signal_format("pose", [f"{name}_{axis}" for name in names for axis in "xy"], RATE, "float64")


BODY = fmt_of(NAMES)


def body(frames: int = 40, lost: float = 0.0, seed: int = 0) -> Poses:
    random = np.random.default_rng(seed)
    poses = random.uniform(1, 400, (frames, len(NAMES), 2))
    poses[random.random((frames, len(NAMES))) < lost] = 0
    return poses.reshape(frames, -1)


def through(step: dict[str, Any], poses: Poses, fmt: Format = BODY) -> Poses:
    """What comes out of a stream, cut here and there; and the laws on it, in which joints are missing."""
    step = dict(step)
    spec, header = make_step(step.pop("step"), step), Header("s", 0, fmt)
    cuts = sorted({*range(0, len(poses), 3), 1, 2, len(poses)} & {*range(len(poses) + 1)})
    chunks = [Chunk(header, a, poses[a:b]) for a, b in pairwise(cuts)]
    check_cut(spec, [Run(header, 0, poses)], chunks)
    check_snapshot(spec, chunks, [1, 4, 5])
    out: Poses = np.concatenate([chunk.data for chunk in run(spec, chunks)])
    return out


NOSE = fmt_of(["nose"])
GAPS = np.array([[0, 0], [1, 10], [0, 0], [0, 0], [4, 40], [0, 0], [0, 0], [0, 0], [8, 80], [0, 0]], float)


def test_a_joint_is_held_so_long() -> None:
    out = through({"step": "fill_joints", "longest_s": 0.2}, GAPS, NOSE)
    assert out[:, 0].tolist() == [0, 1, 1, 1, 4, 4, 4, 0, 8, 8]


def test_a_joint_lies_on_the_line_between() -> None:
    out = through({"step": "fill_joints", "by": "line", "longest_s": 0.2}, GAPS, NOSE)
    assert out[:, 0] == pytest.approx([0, 1, 2, 3, 4, 0, 0, 0, 8, 0])
    assert out[:, 1] == pytest.approx(10 * out[:, 0])
    out = through({"step": "fill_joints", "by": "line", "longest_s": 0.3}, GAPS, NOSE)
    assert out[:, 0] == pytest.approx([0, 1, 2, 3, 4, 5, 6, 7, 8, 0])


def filled(column: list[float], longest: int, by: str) -> list[float]:
    """One coordinate of a joint that is 0 where it was not found, gap by gap."""
    out, at = list(column), 0
    while at < len(column):
        if column[at]:
            at += 1
            continue
        end = next((i for i in range(at, len(column)) if column[i]), None)
        count = (end if end is not None else len(column)) - at
        for i in range(count):
            if at and by == "hold" and i < longest:
                out[at + i] = column[at - 1]
            if at and by == "line" and end is not None and count <= longest:
                out[at + i] = column[at - 1] + (column[end] - column[at - 1]) * (i + 1) / (count + 1)
        at += count
    return out


@pytest.mark.parametrize("by", ["hold", "line"])
@pytest.mark.parametrize("longest", [1, 3, 12])
def test_joints_fill_each_by_itself(by: str, longest: int) -> None:
    poses = body(60, lost=0.5)
    out = through({"step": "fill_joints", "by": by, "longest_s": longest / RATE}, poses)
    for i in range(poses.shape[1]):
        assert out[:, i] == pytest.approx(filled(poses[:, i].tolist(), longest, by), abs=1e-9)


def test_a_body_is_relative_to_hips_and_torso() -> None:
    poses = body()
    out = through({"step": "normalise_pose"}, poses).reshape(-1, len(NAMES), 2)
    at = {name: poses.reshape(-1, len(NAMES), 2)[:, i] for i, name in enumerate(NAMES)}
    hips, top = ((at[f"left_{part}"] + at[f"right_{part}"]) / 2 for part in ("hip", "shoulder"))
    torso = np.linalg.norm(top - hips, axis=1)[:, None]
    for i, name in enumerate(NAMES):
        np.testing.assert_allclose(out[:, i], (at[name] - hips) / torso, atol=1e-9)


def test_a_body_is_relative_to_shoulders_and_spread() -> None:
    poses = body(lost=0.3)
    out = through({"step": "normalise_pose", "by": "shoulders"}, poses).reshape(-1, len(NAMES), 2)
    for pose, came in zip(poses.reshape(-1, len(NAMES), 2), out, strict=True):
        found = pose.any(axis=1)
        top = [pose[i] for i in (NAMES.index("left_shoulder"), NAMES.index("right_shoulder")) if found[i]]
        centre = np.mean(top, axis=0) if top else pose[found].mean(axis=0)
        spread = np.sqrt(pose[found].var(axis=0).sum())
        np.testing.assert_allclose(came[found], (pose[found] - centre) / spread, atol=1e-9)
        assert not came[~found].any()


def test_what_is_far_is_limited_and_its_place_is_told() -> None:
    plain = through({"step": "normalise_pose"}, body())
    out = through({"step": "normalise_pose", "limit": 0.7, "place": True}, body())
    np.testing.assert_array_equal(out[:, :-2], np.clip(plain, -0.7, 0.7))
    out = through({"step": "normalise_pose", "place": True}, body())
    whole = body().reshape(40, -1, 2)
    torso = (whole[:, 0] - whole[:, 1])[:, 0] / (plain[:, 0] - plain[:, 2])  # pixels in a length
    np.testing.assert_allclose(out[:, -2:], whole[:, 0] / torso[:, None] - plain[:, :2], atol=1e-9)


def test_it_does_not_matter_where_a_body_is_and_how_large() -> None:
    poses = body(40, lost=0.4)
    there = np.repeat((poses.reshape(40, -1, 2) != 0).any(axis=2), 2, axis=1)
    moved = np.where(there, 2.5 * poses + 70, 0)
    step = {"step": "normalise_pose", "found": True}
    out = through(step, poses)
    np.testing.assert_allclose(through(step, moved), out, atol=1e-9)
    assert np.array_equal(out[:, -len(NAMES) :], there[:, ::2])
    assert not out[:, : 2 * len(NAMES)][~there].any()


def test_a_body_without_hips_or_shoulders_still_has_a_size() -> None:
    poses = body(3).reshape(3, -1, 2)
    poses[0, [NAMES.index("left_hip"), NAMES.index("right_hip")]] = 0
    poses[1, [NAMES.index("left_shoulder"), NAMES.index("right_shoulder")]] = 0
    poses[2] = 0
    out = through({"step": "normalise_pose"}, poses.reshape(3, -1)).reshape(3, -1, 2)
    found = poses[0].any(axis=1)
    assert out[0][found].mean(axis=0) == pytest.approx([0, 0], abs=1e-9)
    assert (out[0][found] ** 2).sum(axis=1).mean() == pytest.approx(1)
    assert np.isfinite(out).all()
    assert not out[2].any()


def test_a_pose_relative_to_its_image() -> None:
    out = through({"step": "normalise_pose", "by": "image", "width": 640, "height": 480}, body())
    np.testing.assert_allclose(out.reshape(-1, 2), body().reshape(-1, 2) / (640, 480))


def one_euro(values: list[float], least: float, beta: float, of_speed: float) -> list[float]:
    """Algorithm 1 of the paper, number by number."""

    def alpha(cutoff: float) -> float:
        return 1 / (1 + (1 / (2 * math.pi * cutoff)) * RATE)

    out, speed = [values[0]], 0.0
    for value in values[1:]:
        a = alpha(of_speed)
        speed = a * (value - out[-1]) * RATE + (1 - a) * speed
        a = alpha(least + beta * abs(speed))
        out.append(a * value + (1 - a) * out[-1])
    return out


def test_one_euro_as_published() -> None:
    poses = body()
    step = {"step": "one_euro", "min_cutoff_hz": 0.7, "beta": 0.02, "speed_cutoff_hz": 1.5}
    out = through(step, poses)
    for i in range(poses.shape[1]):
        assert out[:, i] == pytest.approx(one_euro(poses[:, i].tolist(), 0.7, 0.02, 1.5))
    again = poses.copy()
    again[20, 2:4] = 0
    out = through(step, again)
    assert not out[20, 2:4].any()
    assert out[21:, 2] == pytest.approx(one_euro(poses[21:, 2].tolist(), 0.7, 0.02, 1.5))


def test_angles_and_velocities() -> None:
    poses = body(12, lost=0.1)
    out = through({"step": "joint_features", "velocities": True}, poses)
    fmt = make_step("joint_features", {"velocities": True}).output({"pose": BODY})
    assert out.shape == (12, 26 + 8 + 26)
    assert np.array_equal(out[:, :26], poses)
    joints = {name: poses.reshape(12, -1, 2)[:, i] for i, name in enumerate(NAMES)}
    for side in ("left", "right"):
        a, b, c = (joints[f"{side}_{part}"] for part in ("shoulder", "elbow", "wrist"))
        angles = out[:, fmt.channels.index(f"{side}_elbow_angle")]
        for frame in range(12):
            u, v = a[frame] - b[frame], c[frame] - b[frame]
            there = all(place[frame].any() for place in (a, b, c))
            wanted = math.acos(u @ v / math.hypot(*u) / math.hypot(*v)) if there else 0
            assert angles[frame] == pytest.approx(wanted)
    speed = out[:, [fmt.channels.index(f"right_knee_{axis}_velocity") for axis in "xy"]]
    knee = joints["right_knee"]
    both = knee[1:].any(axis=1) & knee[:-1].any(axis=1)
    np.testing.assert_allclose(speed, [(0, 0), *np.where(both[:, None], np.diff(knee, axis=0) * RATE, 0)])


@pytest.mark.parametrize(
    ("rows", "wanted"), [(9, range(9)), (17, range(0, 17, 2)), (270, np.rint(np.linspace(0, 269, 9)))]
)
def test_nine_frames_of_any_window(rows: int, wanted: Any) -> None:
    chain = Chain((Windows(rows, 1), PerWindow(make_step("equally_spaced", {}))))
    poses = body(rows)
    (window,) = run(chain, [Chunk(Header("s", 0, BODY), 0, poses)])
    assert window.header.format.rows == 9
    assert np.array_equal(window.data, poses[np.array([*wanted], int)])


def test_a_short_clip_and_every_so_many_th() -> None:
    (window,) = run(Chain((PaddedWindows(60, 60), PerWindow(make_step("equally_spaced", {})))), [_chunk(body(20))])
    assert np.array_equal(window.data, body(20)[np.rint(np.linspace(0, 19, 9)).astype(int)])
    chain = Chain((Windows(40, 40), PerWindow(make_step("equally_spaced", {"frames": 4, "stride": 5}))))
    (window,) = run(chain, [_chunk(body(40))])
    assert np.array_equal(window.data, body(40)[[0, 5, 10, 15]])


def _chunk(poses: Poses) -> Chunk:
    return Chunk(Header("s", 0, BODY), 0, poses)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"step": "normalise_pose", "by": "image"}, "width and height are those of the image"),
        ({"step": "normalise_pose", "width": 3}, "width and height are those of the image"),
        (
            {"step": "normalise_pose", "by": "image", "width": 3, "height": 3, "place": True},
            "limit and place are of what",
        ),
        ({"step": "joint_features", "angles": False}, "adds angles, velocities or both"),
        ({"step": "equally_spaced", "frames": 9, "stride": 9}, "expected a window of at least 73 rows, `pose` has 60"),
    ],
)
def test_what_makes_no_sense_is_refused(step: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Chain((Windows(60, 60), PerWindow(make_step(step.pop("step"), step)))).output({"pose": BODY})


def test_what_has_no_joints_is_refused() -> None:
    for name in ("fill_joints", "normalise_pose", "one_euro", "joint_features"):
        with pytest.raises(FormatError, match=f"{name}: no joint, such as nose_x and nose_y, among a, b"):
            make_step(name, {}).output({"imu": signal_format("imu", ("a", "b"), 10)})
    with pytest.raises(FormatError, match="no angle between the joints nose"):
        make_step("joint_features", {}).output({"pose": NOSE})
