"""CSV files of keypoints: a recording a video, its class, copies, and what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from documents import SHARED

from kymo.streams.errors import SourceError
from kymo.streams.readers import read
from kymo.streams.readers.keypoints import CHANNELS, JOINTS
from kymo.streams.recording import InputOptions, ReadOptions, Recording

REAL = SHARED / "data" / "pose_kinetics"
POSES = np.random.default_rng(0).integers(1, 600, (2, 9, 17, 2))


def options(column: str = "label", channels: Sequence[str] = (), **more: str) -> ReadOptions:
    return ReadOptions((InputOptions("pose", tuple(channels), Fraction(1)),), label_column=column, label_names=more)


def write(
    path: Path, videos: np.ndarray[tuple[int, ...], np.dtype[np.int64]] = POSES, head: str = "", end: str = ""
) -> Path:
    rows = [f"{chr(65 + i % 17)},{x},{y}{end}" for i, (x, y) in enumerate(videos.reshape(-1, 2).tolist())]
    path.write_text("\n".join([*filter(None, [head]), *rows]) + "\n")
    return path


def recordings(path: Path, column: str = "label", **more: str) -> list[Recording]:
    return list(read([path], options(column, **more)))


def test_a_recording_a_video(tmp_path: Path) -> None:
    path = write(tmp_path / "training_data_yoga.csv", head="keypoint,x,y,action", end=",1")
    videos = recordings(path)
    assert [video.session for video in videos] == ["training_data_yoga-000", "training_data_yoga-001"]
    for video, poses in zip(videos, POSES, strict=True):
        (stream,) = video.streams
        fmt = stream.header.format
        assert (fmt.stream, fmt.channels, fmt.rate, fmt.dtype) == ("pose", CHANNELS, 1, "float64")
        assert np.array_equal(stream.data, poses.reshape(9, 34))
        (label,) = video.labels
        assert (label.set, label.label, label.start_ns, label.end_ns) == ("label", "yoga", 0, 9 * 10**9)
    assert [
        recordings(path, "action")[0].labels[0].label,
        recordings(path, "action", **{"1": "yoga"})[0].labels[0].label,
    ] == ["1", "yoga"]
    assert [len(JOINTS), CHANNELS[20], CHANNELS[-1]] == [17, "right_wrist_x", "right_ankle_y"]


@pytest.mark.parametrize(("head", "end"), [("", ""), ("", ",0"), ("keypoint,x,y", "")])
def test_without_names_or_actions(tmp_path: Path, head: str, end: str) -> None:
    videos = recordings(write(tmp_path / "wrestling12.csv", head=head, end=end))
    assert [[label.label for label in video.labels] for video in videos] == [["wrestling"]] * 2
    assert np.array_equal(videos[1].streams[0].data, POSES[1].reshape(9, 34))


def test_copies_are_of_one_person(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.csv"), write(tmp_path / "b.csv", POSES[::-1])
    subjects = [video.subject for video in read([a, b], options())]
    assert subjects[:2] == subjects[:1:-1]
    assert len(set(subjects)) == 2


def test_joints_that_are_missing_are_at_0_and_frames_without_any_are_not_learned_from(tmp_path: Path) -> None:
    text = write(tmp_path / "a.csv").read_text().replace(f"C,{POSES[0, 0, 2, 0]},", "C,nan,", 1)
    (tmp_path / "a.csv").write_text(text)
    first, _ = recordings(tmp_path / "a.csv")
    assert first.streams[0].data[0, 2:6].tolist() == [*POSES[0, 0, 1].tolist(), 0, 0]
    poses = POSES.copy()
    poses[1, 4] = 0
    first, second = recordings(write(tmp_path / "b.csv", poses))
    assert (len(first.labels), second.labels, second.notes) == (
        1,
        [],
        ["1 frame without any joint: read without labels"],
    )


def test_channels_are_chosen_and_the_rest_of_a_video_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-20]))
    (video,) = read([path], options(channels=["nose_y", "left_eye_x"]))
    assert video.streams[0].data[0].tolist() == [POSES[0, 0, 0, 1], POSES[0, 0, 1, 0]]
    assert video.notes == ["behind it 133 rows that make no video of 153 are left out"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\nD,", "\nF,", "row 4: has 'F,.*', expected keypoint D with 4 cells"),
        ("\nQ,", "\nQ,x", "row 17: has x,y 'x.*', expected numbers"),
        ("0\nE", "1\nE", "row 4: column `action` has '1', the video's first row has '0'"),
    ],
)
def test_what_is_wrong_is_said_with_its_row(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path / "a.csv", end=",0")
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(SourceError, match=message):
        recordings(path, "action")


def test_rate_and_length_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", POSES[:1, :8])
    with pytest.raises(SourceError, match="holds 136 rows of keypoints, fewer than a video of 153"):
        recordings(path)
    with pytest.raises(SourceError, match="nothing gives the rate of its frames: say `rate_hz`"):
        list(read([path]))
    with pytest.raises(SourceError, match=r"no channel `nose`.*nose_x"):
        list(read([path], options(channels=["nose"])))


def test_any_other_csv_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("keypoints,x,y\n" + "1,2,3\n" * 20)
    (recording,) = read([tmp_path / "a.csv"], ReadOptions((InputOptions("pose", ("x", "y"), Fraction(10)),)))
    assert recording.streams[0].data.shape == (20, 2)


@pytest.mark.skipif(not REAL.is_dir(), reason="no keypoints beside the checkout")
def test_the_published_files() -> None:
    videos = list(read([REAL / "training_data_guitar.csv", REAL / "training_data_yoga.csv"], options()))
    assert Counter(video.session[14:20] for video in videos) == {
        "guitar": 366,
        "yoga-0": 100,
        "yoga-1": 100,
        "yoga-2": 100,
        "yoga-3": 59,
    }
    assert Counter(label.label for video in videos for label in video.labels) == {"guitar": 365, "yoga": 358}
    assert all((video.streams[0].data == video.streams[0].data[0]).all() for video in videos)  # still poses
