"""Variations of windows: what changes, what stays, the same seed the same windows."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kymo.processors.augment import KINDS, Augment, Augmentation, augmenter
from kymo.processors.steps.maps import Mask
from kymo.streams.chunk import Format, signal_format
from kymo.streams.errors import TrainingError
from kymo.streams.schema import SchemaError, kind_of

CHANNELS = ("ax", "ay", "az", "heat")
SIGNAL = signal_format("imu", CHANNELS, 50)
SPECTRUM = Format("spectrogram", CHANNELS, (), Fraction(10), "float32", (6, 4), rows=20)
N = 400


def windows(fmt: Format = SIGNAL, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((N, 20, *fmt.shape)).astype(np.float32) + 3


def varied(
    table: dict[str, Any], fmt: Format = SIGNAL, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    given = windows(fmt)
    before = given.copy()
    out = augment([{"p": 1.0} | table], fmt)(given, np.random.default_rng(seed))
    assert np.array_equal(given, before)
    assert (out.shape, out.dtype) == (given.shape, np.float32)
    return given, out


def augment(tables: list[dict[str, Any]], fmt: Format) -> Augment:
    return augmenter([kind_of(Augmentation).take(table) for table in tables], fmt)


@pytest.mark.parametrize("fmt", [SIGNAL, SPECTRUM])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_windows(kind: str, fmt: Format) -> None:
    if (kind, fmt) in (("rotate", SPECTRUM), ("bin_mask", SIGNAL)) or kind in ("modality_dropout", "pose"):
        with pytest.raises(TrainingError, match=f"{kind}: defined on"):
            augment([{"kind": kind}], fmt)
        return
    table = {"kind": kind} | ({} if kind == "rotate" else {"share": 0.9})
    given, one = varied(table, fmt)
    assert np.array_equal(one, varied(table, fmt)[1])
    assert not np.array_equal(one, varied(table, fmt, seed=1)[1])
    assert not np.array_equal(one, given)
    assert np.array_equal(varied(table | {"p": 0.0}, fmt)[1], given)
    half = varied(table | {"p": 0.5}, fmt)[1]
    assert 0.3 * N < (half != given).any(axis=tuple(range(1, half.ndim))).sum() < 0.6 * N


def test_jitter_is_a_share_of_the_deviation() -> None:
    given = windows()
    given[..., 1] *= 100
    out = augment([{"kind": "jitter", "share": 0.2, "p": 1.0}], SIGNAL)(given, np.random.default_rng(0))
    noise = (out - given).std(axis=(0, 1)) / given.std(axis=1).mean(0)
    assert noise == pytest.approx([0.2] * 4, rel=0.03)
    assert ((out - given) / given.std(axis=(0, 1))).mean() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("fmt", [SIGNAL, SPECTRUM])
def test_scale_is_one_factor_a_channel(fmt: Format) -> None:
    given, out = varied({"kind": "scale", "share": 0.25}, fmt)
    factor = (out / given).reshape(N, -1, 4)
    assert np.abs(factor - factor[:, :1]).max() < 1e-5
    one = factor[:, 0]
    assert 0.8 - 1e-5 <= one.min() < 0.81
    assert 1.24 < one.max() <= 1.25 + 1e-5
    assert abs(np.corrcoef(one.T)[0, 1]) < 0.2


def test_rotation_keeps_lengths_and_angles() -> None:
    given, out = varied({"kind": "rotate", "degrees": 40})
    assert np.array_equal(out[..., 3], given[..., 3])
    grams = [np.einsum("nti,nsi->nts", w[..., :3], w[..., :3]) for w in (given, out)]
    assert np.abs(grams[0] - grams[1]).max() < 1e-3
    # The matrix that turns one into the other is a rotation, by up to 40 degrees.
    matrix = np.linalg.lstsq(given[0, :, :3], out[0, :, :3], rcond=None)[0]
    assert np.linalg.det(matrix) == pytest.approx(1, abs=1e-4)
    cosines = [
        (np.trace(np.linalg.lstsq(a[:, :3], b[:, :3], rcond=None)[0]) - 1) / 2 for a, b in zip(given, out, strict=True)
    ]
    angles = np.rad2deg(np.arccos(np.clip(cosines, -1, 1)))
    assert angles.max() == pytest.approx(40, abs=1)
    assert angles.mean() == pytest.approx(20, abs=2)


def test_groups_turn_together_or_alone() -> None:
    fmt = signal_format("imu", ("ax", "ay", "az", "gx", "gy", "gz"), 50)
    base = np.random.default_rng(0).standard_normal((9, 20, 3)).astype(np.float32)
    both = np.concatenate([base, base], -1)
    table = {"kind": "rotate", "p": 1.0}
    together = augment([table], fmt)(both, np.random.default_rng(0))
    assert np.array_equal(together[..., :3], together[..., 3:])
    alone = augment([table | {"together": False}], fmt)(both, np.random.default_rng(0))
    assert not np.array_equal(alone[..., :3], alone[..., 3:])
    named = augment([table | {"groups": [["gx", "gy", "gz"]]}], fmt)(both, np.random.default_rng(0))
    assert np.array_equal(named[..., :3], base)
    assert not np.array_equal(named[..., 3:], base)


def test_a_warp_of_a_line_shows_the_pace() -> None:
    line = np.broadcast_to(np.arange(50, dtype=np.float32)[None, :, None], (N, 50, 4)).copy()
    out = augment([{"kind": "time_warp", "share": 0.5, "p": 1.0}], SIGNAL)(line, np.random.default_rng(0))
    assert np.array_equal(out[:, 0], line[:, 0])
    assert np.abs(out[:, -1] - 49).max() < 1e-4
    pace = np.diff(out[..., 0], axis=1)
    assert pace.min() > 1 / 1.5**2 - 1e-3  # never backwards
    assert pace.max() < 1.5**2 + 1e-3
    assert pace.std(axis=1).mean() > 0.05


def test_dropout_leaves_a_channel() -> None:
    given, out = varied({"kind": "channel_dropout", "share": 0.5})
    gone = (out == 0).all(1)
    assert np.array_equal(np.where(gone[:, None], 0, given), out)
    assert gone.mean() == pytest.approx(0.5 * 3 / 4, abs=0.05)
    assert not varied({"kind": "channel_dropout", "share": 1.0})[1].all(axis=(1, 2)).any()
    assert ((varied({"kind": "channel_dropout", "share": 1.0})[1] != 0).any(1).sum(1) == 1).all()


@pytest.mark.parametrize(("kind", "axis", "most"), [("time_mask", 1, 5), ("bin_mask", 2, 1)])
def test_masks_hide_one_stretch(kind: str, axis: int, most: int) -> None:
    given, out = varied({"kind": kind, "share": 0.25}, SPECTRUM)
    other = tuple(a for a in (1, 2, 3) if a != axis)
    hidden = (out == 0).all(axis=other)
    assert np.array_equal(np.where(np.expand_dims(hidden, tuple(a for a in other)), 0, given), out)
    assert set(hidden.sum(1)) == set(range(most + 1))
    assert all(np.count_nonzero(np.diff(np.r_[0, row.astype(int), 0])) in (0, 2) for row in hidden)
    assert hidden.any(0).all()  # anywhere


def test_several_act_one_after_the_other() -> None:
    tables = [{"kind": "scale", "p": 1.0}, {"kind": "time_mask", "share": 0.5, "p": 1.0}]
    random = np.random.default_rng(5)
    one_by_one = windows()
    for table in tables:
        one_by_one = augment([table], SIGNAL)(one_by_one, random)
    assert np.array_equal(augment(tables, SIGNAL)(windows(), np.random.default_rng(5)), one_by_one)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "jiter"}, "`kind` is 'jiter', expected one of .*; did you mean 'jitter'"),
        ({}, "`kind` is absent"),
        ({"kind": "jitter", "shares": 1}, "has no `shares`; did you mean 'share'"),
        ({"kind": "scale", "share": -1}, "`share` is -1, expected a number from 0 to 10"),
        ({"kind": "time_mask", "p": 2}, "`p` is 2, expected a number from 0 to 1"),
        ({"kind": "rotate", "groups": [["ax", "ay"]]}, "expected arrays of three channel names"),
        ({"kind": "rotate", "groups": [["ax", "ay", "up"]]}, "no channel up among ax, ay, az, heat"),
    ],
)
def test_wrong_tables_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises((SchemaError, TrainingError), match=message):
        augment([table], SIGNAL)


# -- inputs of a join ------------------------------------------------------------------------------------------------

MASK = Mask(("imu", "heart"), (("ax", "ay", "az"), ("heat",)))


def behind_mask(fmt: Format, seed: int = 0) -> NDArray[np.float32]:
    """Windows in which inputs are missing for a while, or throughout."""
    data, random = windows(fmt, seed), np.random.default_rng(seed + 99)
    data[: N // 4, :, ..., 3] = np.nan
    for window in data[N // 4 : N // 2]:
        first = random.integers(20)
        window[first : first + random.integers(1, 9), ..., :3] = np.nan
    out: NDArray[np.float32] = np.asarray(MASK.apply(data, fmt), np.float32)
    return out


def there(masked: NDArray[np.float32]) -> NDArray[np.bool_]:
    """By window, row and input, what the mask says; checked to be what the channels say."""
    mask = masked[..., -2:].reshape(*masked.shape[:2], -1, 2)[:, :, 0] > 0
    assert ((masked[..., -2:] == 0) | (masked[..., -2:] == 1)).all()
    for number, columns in enumerate((slice(0, 3), slice(3, 4))):
        assert (masked[..., columns][~mask[..., number]] == 0).all()
        assert (np.ptp(masked[..., columns].reshape(*masked.shape[:2], -1), axis=2) >= 0).all()
    return mask


def varied_inputs(table: dict[str, Any], fmt: Format = SIGNAL, seed: int = 0) -> tuple[NDArray[np.float32], ...]:
    given = behind_mask(fmt)
    before = given.copy()
    variations = [kind_of(Augmentation).take({"p": 1.0} | table)]
    out = augmenter(variations, MASK.output({"s": fmt}), MASK)(given, np.random.default_rng(seed))
    assert np.array_equal(given, before)
    return given, np.asarray(out, np.float32)


@pytest.mark.parametrize("fmt", [SIGNAL, SPECTRUM])
def test_an_input_that_is_dropped_is_as_one_that_is_missing(fmt: Format) -> None:
    given, out = varied_inputs({"kind": "modality_dropout", "share": 0.5}, fmt)
    before, after = there(given), there(out)
    assert not (after & ~before).any()
    kept = np.repeat(after, (3, 1), 2).reshape(*after.shape[:2], *[1] * (len(fmt.shape) - 1), 4)
    assert np.array_equal(out[..., :4], np.where(kept, given[..., :4], 0))
    # Throughout the window or not at all; and never all that were there.
    for number in range(2):
        gone = (before & ~after)[..., number].any(1)
        assert not after[gone][..., number].any()
    assert (after.any((1, 2)) == before.any((1, 2))).all()
    alone = before.any(1).sum(1) == 1
    assert alone.any()
    assert np.array_equal(out[alone], given[alone])
    both = before.any(1).all(1)
    # Half of the time it is the one that stays.
    assert (before & ~after)[both].any(1).mean(0) == pytest.approx([0.25, 0.25], abs=0.06)
    assert np.array_equal(varied_inputs({"kind": "modality_dropout", "share": 0.0}, fmt)[1], given)


def test_an_input_may_drop_out_for_a_stretch() -> None:
    given, out = varied_inputs({"kind": "modality_dropout", "share": 1.0, "whole": 0.0})
    gone = (there(given) & ~there(out))[N // 2 :]  # where both were there throughout
    assert (gone.any(1).sum(1) == 1).all()
    stretches = gone.any(2)
    assert all(np.count_nonzero(np.diff(np.r_[0, row.astype(int), 0])) == 2 for row in stretches)
    assert set(stretches.sum(1)) == set(range(1, 21))
    assert stretches.any(0).all()
    mixed = varied_inputs({"kind": "modality_dropout", "share": 1.0, "whole": 0.5})[1][N // 2 :]
    assert (~there(mixed)).any(2).all(1).mean() == pytest.approx(0.5 + 0.5 / 20, abs=0.08)


def test_only_inputs_that_are_named_drop_out() -> None:
    given, out = varied_inputs({"kind": "modality_dropout", "share": 1.0, "inputs": ["heart"]})
    before, after = there(given), there(out)
    assert np.array_equal(before[..., 0], after[..., 0])
    assert not after[before[..., 0].any(1)][..., 1].any()
    for table, why in (({"inputs": ["hart"]}, "no input hart among imu, heart"), ({}, "`imu` is not so")):
        mask = MASK if table else None
        fmt = MASK.output({"s": SIGNAL}) if table else SIGNAL
        with pytest.raises(TrainingError, match=why):
            augmenter([kind_of(Augmentation).take({"kind": "modality_dropout"} | table)], fmt, mask)
    of_none = Mask(("imu", "heart"), (("ax", "ay"), ("heat",)))
    with pytest.raises(TrainingError, match="channel az is of no input alone"):
        augmenter([kind_of(Augmentation).take({"kind": "modality_dropout"})], of_none.output({"s": SIGNAL}), of_none)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"modality_dropout", "bin_mask", "pose"}))
def test_what_is_missing_stays_missing(kind: str) -> None:
    """Other variations see what is there alone: by the same draw they do to it what they do without a mask."""
    table = {"kind": kind} | ({"degrees": 90} if kind == "rotate" else {"share": 0.5})
    given, out = varied_inputs(table)
    before, after = there(given), there(out)
    if kind == "time_warp":
        assert (after.any(1) == before.any(1)).mean() > 0.9
        assert not after[~before.any(1)[:, None] & np.ones((1, 20, 1), bool)].any()
    else:
        assert np.array_equal(before, after)
    whole = before.all((1, 2))
    assert whole.any()
    plain = augmenter([kind_of(Augmentation).take({"p": 1.0} | table)], SIGNAL)(
        given[..., :4].copy(), np.random.default_rng(0)
    )
    np.testing.assert_allclose(out[whole][..., :4], plain[whole], rtol=1e-6)
    assert not np.array_equal(out[~whole], given[~whole])
    assert np.isfinite(out).all()


def test_noise_is_a_share_of_what_is_there() -> None:
    given, out = varied_inputs({"kind": "jitter", "share": 0.5})
    noise, present = (out - given)[..., 0], there(given)[..., 0]
    for window, values, rows in zip(noise, given[..., 0], present, strict=True):
        if rows.any():
            assert np.abs(window[rows]).max() < 5 * 0.5 * values[rows].std() + 1e-3


BODY = signal_format("pose", [f"{name}_{axis}" for name in ("nose", "left_hip", "right_hip") for axis in "xy"], 1)
STILL = {"kind": "pose", "mirror": 0, "degrees": 0, "share": 0, "noise": 0, "lost": 0}


def test_a_mirrored_body_has_left_and_right_changed() -> None:
    given, out = varied(STILL | {"mirror": 1}, BODY)
    assert np.array_equal(out[..., 0::2], -given[..., [0, 4, 2]])
    assert np.array_equal(out[..., 1::2], given[..., [1, 5, 3]])


def test_a_turned_body_keeps_its_shape() -> None:
    given, out = varied(STILL | {"degrees": 30, "share": 0.2}, BODY)
    before, after = (windows[..., 0::2] + 1j * windows[..., 1::2] for windows in (given, out))
    turn = after / before
    assert np.abs(turn - turn[:, :1, :1]).max() < 1e-5
    assert 25 < np.rad2deg(np.abs(np.angle(turn[:, 0, 0]))).max() <= 30.01
    assert 1.15 < np.abs(turn).max() < 1.21


def test_joints_that_were_not_found_stay_so_and_some_are_lost() -> None:
    fmt = signal_format("pose", (*BODY.channels, "nose_found", "left_hip_found", "right_hip_found"), 1)
    given = windows(fmt)
    given[..., 6:] = 1
    given[:, :, [0, 1, 6]] = 0
    out = augment([{"kind": "pose", "p": 1.0, "mirror": 0, "noise": 0.5, "lost": 0.25}], fmt)(
        given, np.random.default_rng(0)
    )
    assert not out[..., [0, 1, 6]].any()
    lost = out[:, 0, 7:] == 0
    assert lost.mean() == pytest.approx(0.25, abs=0.05)
    assert np.array_equal(out[:, :, [2, 4]] == 0, np.broadcast_to(lost[:, None], (N, 20, 2)))


def test_poses_need_joints() -> None:
    with pytest.raises(TrainingError, match="pose: defined on joints: no joint, such as nose_x"):
        augment([{"kind": "pose"}], SIGNAL)
