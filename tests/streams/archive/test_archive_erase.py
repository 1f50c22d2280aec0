"""What is erased from an archive: of which topic, and what files set aside still hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from archive_lab import chunk, chunk_record, record, write_archive
from click.testing import CliRunner

from kymo.streams.archive.erase import ERASED_FILE, Erased, erase_session, name_digest
from kymo.streams.archive.format import segment_paths
from kymo.streams.archive.read import ArchiveReader
from kymo.streams.errors import ArchiveError
from kymo.streams.sessions_cli import delete_command

SENSOR = ("t.sensor", 0)


def test_a_topic_made_anew_is_another_one(tmp_path: Path) -> None:
    erased = Erased(tmp_path)
    erased.add("s1", {SENSOR: 100}, {"t.sensor": "old"})
    before = record("sensor", 99, "s1", b"")
    behind = record("sensor", 100, "s1", b"")
    for found in (erased, Erased(tmp_path)):
        assert found.has(before, "old")
        assert not found.has(behind, "old")
        assert not found.has(before, "new")
        assert found.has(before, "")  # of a segment that does not tell: rather erased than kept
        assert not found.has(record("sensor", 99, "s2", b""), "old")
    erased.add("s1", {SENSOR: 50}, {"t.sensor": "new"})
    again = Erased(tmp_path)
    assert again.has(record("sensor", 49, "s1", b""), "new")
    assert not again.has(record("sensor", 50, "s1", b""), "new")
    assert again.has(before, "old")
    assert b"s1" not in (tmp_path / ERASED_FILE).read_bytes()


def test_a_list_without_ids_counts_for_every_topic_of_the_name(tmp_path: Path) -> None:
    rows = [{"session_sha256": name_digest("s1"), "until": [["t.sensor", 0, 100]]}]
    (tmp_path / ERASED_FILE).write_text(json.dumps(rows))
    erased = Erased(tmp_path)
    assert erased.has(record("sensor", 99, "s1", b""), "any")
    assert not erased.has(record("sensor", 100, "s1", b""), "any")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ERASED_FILE).write_text("[{}]")
    with pytest.raises(ArchiveError, match="says which sessions are erased"):
        Erased(tmp_path / "other")


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sessions in two segments, the second of them recovered from a damaged file, and no broker."""
    for name in ("KYMO_PREFIX", "KYMO_HOME"):
        monkeypatch.delenv(name, raising=False)
    parts = [[chunk_record(2 * n + i, chunk(f"s{i}", 10 * n)) for i in range(2)] for n in range(2)]
    paths = write_archive(tmp_path / "a", parts)
    paths[1].with_name(paths[1].name + ".damaged").write_bytes(paths[1].read_bytes()[:-20])
    monkeypatch.setattr(
        "kymo.streams.kafka.sessions.delete_session", lambda *_: pytest.fail("nothing may be erased yet")
    )
    return tmp_path / "a"


def delete(folder: Path, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(delete_command, ["s0", "--yes", "--archive", str(folder), *more])
    return done.exit_code, str(done.exception)


def test_damaged_files_that_may_hold_the_session_are_named(archive: Path) -> None:
    before = {path.name: path.read_bytes() for path in archive.iterdir()}
    status, said = delete(archive)
    assert status == 1
    assert "kymo-00000002.mcap.damaged may hold records of s0" in said
    assert "--damaged" in said
    assert {path.name: path.read_bytes() for path in archive.iterdir() if path.name in before} == before


def test_damaged_files_go_where_that_is_asked_for(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kymo.streams.kafka.sessions import Deletion

    monkeypatch.setattr("kymo.streams.kafka.sessions.delete_session", lambda *_: Deletion())
    assert delete(archive, "--damaged")[0] == 0
    assert not list(archive.glob("*.damaged"))
    assert ArchiveReader(archive).sessions() == ["s1"]
    for path in archive.iterdir():
        assert b"s0" not in path.read_bytes()


def test_what_was_not_recovered_yet_is_not_thrown_away(archive: Path) -> None:
    """The recovery was killed: all that there is of the others' records stands in the damaged file."""
    segment_paths(archive)[1].unlink()
    status, said = delete(archive, "--damaged")
    assert (status, "kymo archive recover" in said) == (1, True)
    assert list(archive.glob("*.damaged"))


def test_chunks_without_a_key_are_no_session_but_somebodys(tmp_path: Path) -> None:
    keyed = [chunk_record(i, chunk("a", 10 * i)) for i in range(2)]
    others = [chunk("b", 0), chunk("b", 10), chunk("a", 20)]
    nameless = [chunk_record(2 + i, made)._replace(key=None) for i, made in enumerate(others)]
    odd = [record("sensor", 5, None, b"garbage"), record("sensor", 6, None, None)]
    write_archive(tmp_path, [[*keyed, *nameless, *odd]])
    reader = ArchiveReader(tmp_path)
    assert reader.sessions() == ["a"]  # no worker takes a chunk without a key
    assert [(r.session, r.streams[0].count) for r in reader.recordings()] == [("a", 20)]
    assert erase_session(tmp_path, "b") == (2, 1)
    assert erase_session(tmp_path, "a") == (3, 1)
    assert [r.value for r in ArchiveReader(tmp_path).records()] == [b"garbage", None]
