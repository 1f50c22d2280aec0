"""Clips of the music study: what the published facts say of one real person's video, frame by frame."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from physio_files import write_workbook
from verbs import invoke

from kymo.lab.look.film import write_film
from kymo.streams.readers import read

cv2 = pytest.importorskip("cv2")
pytest.importorskip("openpyxl")
DATA = Path(__file__).parents[3] / "shared" / "data" / "physio_anu"
#: Seconds of P09's video, from its sheet by hand: the first begins 2 s late, the second was cut short.
SECONDS = {
    1: (2, 34),
    2: (37, 43),
    3: (63, 95),
    4: (116, 148),
    9: (170, 202),
    10: (219, 256),
    11: (268, 300),
    12: (322, 353),  # the sheet says 354, but its video ends before
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not DATA.is_dir():
        pytest.skip("shared/data/physio_anu is absent")
    folder = tmp_path_factory.mktemp("study")
    for name in ("P09.xlsx", "09.mp4"):
        (folder / name).symlink_to(DATA / name)
    (folder / "~$P09.xlsx").write_bytes(b"a lock file of Office")
    return folder


@pytest.fixture(scope="module")
def frames(source: Path) -> dict[int, np.ndarray]:
    """Frames of the video as OpenCV gives them one after the other, every tenth."""
    video, kept = cv2.VideoCapture(str(source / "09.mp4")), {}
    for number in range(1, 10_600):
        if video.grab() and number % 10 == 0:
            kept[number] = video.retrieve()[1]
    return kept


def test_folders_tables_and_frames_are_as_published(
    source: Path, frames: dict[int, np.ndarray], tmp_path: Path
) -> None:
    facts = json.loads(invoke("prepare", "physiology", str(source), str(tmp_path), "--json").output)
    assert facts["clips"] == {"Classical": 3, "Pop": 4}
    assert facts["left_out"] == ["P09_music02: cut short: 6 frames, of which number 25 is wanted"]
    rows = (tmp_path / "training_csv" / "train_all1.csv").read_text().splitlines()
    assert rows[:2] == ["image,class", "P09_music01_frame000.jpg,Classical"]
    assert len(rows) - 1 == sum(end - start for start, end in SECONDS.values()) == facts["frames"]
    assert sorted(path.name for path in (tmp_path / "training_split1").iterdir())[:2] == [
        "Classicalmusic1_1",
        "Classicalmusic3_1",
    ]
    images = sorted(path.name for path in (tmp_path / "training_split1" / "Popmusic4_1").iterdir())
    assert (images[0], images[-1], len(images)) == ("frame001.jpg", "frame025.jpg", 25)
    piece = cv2.VideoCapture(str(tmp_path / "Video Segments" / "P09" / "music02.mp4"))
    assert (piece.get(cv2.CAP_PROP_FRAME_COUNT), piece.get(cv2.CAP_PROP_FPS)) == (6 * 30, 30)
    recordings = {recording.session: recording for recording in read([tmp_path / "clips1.mcap"])}
    for number, (start, _) in SECONDS.items():
        if number == 2:
            continue
        recording = recordings[f"P09_music{number:02d}"]
        (stream,) = recording.streams
        wanted = [frames[start * 30 + 30 * i][..., ::-1] for i in range(1, 26)]
        np.testing.assert_array_equal(stream.data, wanted)
        assert (recording.subject, recording.labels[0].label) == ("P09", "classical" if number < 5 else "pop")
        assert stream.header.format.rate == 4 / np.float64(30) or stream.header.format.rate.as_integer_ratio() == (
            2,
            15,
        )


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (("--share", "80"), 20),
        (("--share", "50"), 12),
        (("--per-second", "2"), 51),
        (("--per-second", "2", "--share", "80"), 41),
        (("--per-second", "2", "--share", "50"), 25),
        (("--per-second", "3"), 77),
        (("--per-second", "3", "--share", "80"), 62),
        (("--per-second", "3", "--share", "50"), 38),
        (("--begin", "3", "--end", "10", "--skip", "3"), 3),
    ],
)
def test_as_many_frames_as_published(options: tuple[str, ...], count: int) -> None:
    from kymo.lab.prepare.physiology import ClipPlan

    values = dict(zip([name[2:].replace("-", "_") for name in options[::2]], map(int, options[1::2]), strict=True))
    assert len(ClipPlan(**values).numbers) == count


def test_three_frames_a_second_in_little(source: Path, frames: dict[int, np.ndarray], tmp_path: Path) -> None:
    options = ("--per-second", "3", "--begin", "2", "--end", "6", "--skip", "2", "--size", "32", "--no-videos")
    invoke("prepare", "physiology", str(source), str(tmp_path), *options)
    assert not list((tmp_path / "Video Segments").iterdir())
    first = next(iter(read([tmp_path / "clips3.mcap"])))
    wanted = [cv2.resize(frames[60 + 10 * i], (32, 32), interpolation=cv2.INTER_AREA)[..., ::-1] for i in (2, 4)]
    np.testing.assert_array_equal(first.streams[0].data, wanted)


def level(second: int) -> int:
    """Grey of a second, far from its neighbours'."""
    return 37 * second % 240


def test_a_video_in_two_files_under_other_numbers(tmp_path: Path) -> None:
    from kymo.lab.prepare.physiology import VIDEO_HZ

    source, out, start, length = tmp_path / "study", tmp_path / "out", 1_500_000_000, 420
    source.mkdir()
    eda = [[start], [4], *([1 + 0.01 * (i % 9)] for i in range(4 * length))]
    info = [[2, start + 4, start + 206], [7, start + 210, start + 412]]
    write_workbook(source / "P01.xlsx", {"P01": eda, "info": info})
    (source / "29.mp4").write_bytes(b"of nobody")
    halves = {"04.mp4": range(900), "04 (2).mp4": range(900, 1700)}  # frames, whose level says their second
    for name, numbers in halves.items():
        write_film(source / name, (np.full((32, 32, 3), level(i // VIDEO_HZ), np.uint8) for i in numbers), VIDEO_HZ)
    facts = json.loads(invoke("prepare", "physiology", source, out, "--shift", "3", "--json").stdout)
    assert (facts["clips"], facts["left_out"]) == ({"Classical": 1, "Instrumental": 1}, [])
    assert "29.mp4: no sheet" in facts["notes"]
    for clip, begin in (("P01_music02", 2), ("P01_music07", 27)):  # the first of them is 2 s late
        levels = [cv2.imread(str(out / "train_all1" / f"{clip}_frame{i:03d}.jpg")).mean() for i in range(25)]
        np.testing.assert_allclose(levels, [level(begin + i) for i in range(25)], atol=4)
    result = invoke("prepare", "physiology", source, out, status=1)
    assert "--shift says how much larger the numbers of 04.mp4, 04 (2).mp4, 29.mp4 are" in result.output


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    result = invoke("prepare", "physiology", str(tmp_path), str(tmp_path / "out"), status=1)
    assert "no sheet Pnn.xlsx with a video nn.mp4 beside it" in result.output
    (tmp_path / "P01.xlsx").write_text("no workbook")
    (tmp_path / "01.mp4").write_text("no video")
    result = invoke("prepare", "physiology", str(tmp_path), str(tmp_path / "out"), status=1)
    assert "P01.xlsx" in result.output
    assert not (tmp_path / "out" / "clips1.mcap").exists()
