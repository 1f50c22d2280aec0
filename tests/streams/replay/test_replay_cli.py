"""`kymo replay`: which sessions it takes, what it says, its status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import kymo
from kymo.streams.errors import SourceError
from kymo.streams.recording import ReadOptions
from kymo.streams.replay.cli import choose, make_command
from kymo.streams.settings import Settings


@pytest.fixture
def settings(broker: str, prefix: str) -> Settings:
    return Settings(brokers=broker, prefix=prefix, partitions=3)


def csv(folder: Path, name: str, session: str = "") -> Path:
    rows = "".join(f"{i / 10},{i},{-i}" + (f",{session}" if session else "") + "\n" for i in range(30))
    path = folder / f"{name}.csv"
    path.write_text("t,ax,ay" + (",session" if session else "") + "\n" + rows)
    return path


def test_names_choose_one_of_several_or_name_the_only_one(tmp_path: Path) -> None:
    one = csv(tmp_path, "walk1")
    assert [r.session for r in choose([str(one)], ReadOptions(), "mine", None)] == ["mine"]
    (named,) = choose([str(one)], ReadOptions(), None, "imu.left")
    assert [s.header.format.stream for s in named.streams] == ["imu.left"]
    csv(tmp_path, "walk2")
    assert [r.session for r in choose([str(tmp_path)], ReadOptions(), "walk2", None)] == ["walk2"]
    with pytest.raises(SourceError, match=r"no session walk3: there are walk1, walk2; did you mean walk2\?"):
        list(choose([str(tmp_path)], ReadOptions(), "walk3", None))


@pytest.mark.broker
def test_command_sums_up_and_its_status_tells(settings: Settings, tmp_path: Path) -> None:
    command = make_command(lambda _: ReadOptions())
    env = {"KYMO_BROKERS": settings.brokers, "KYMO_PREFIX": settings.prefix, "KYMO_PARTITIONS": "3"}
    path = str(csv(tmp_path, "walk"))
    done = CliRunner().invoke(command, [path, "--speed", "max", "--stream", "imu", "--json"], env=env)
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert (found["sessions"], found["samples"], found["ok"]) == (1, 30, True)
    again = CliRunner().invoke(command, [path, "--speed", "max", "--stream", "imu"], env=env)
    assert again.exit_code == 0
    assert "there already" in again.stdout
    gone = CliRunner().invoke(kymo.cli, ["replay", str(tmp_path / "no.csv"), "--speed", "max"], env=env)
    assert gone.exit_code == 1
    assert len(gone.stderr.strip().splitlines()) == 1
    assert CliRunner().invoke(command, [path, "--speed", "0"], env=env).exit_code == 2
