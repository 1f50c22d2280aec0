"""Settings from variables: what is read, and that what cannot be used is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kymo.streams.errors import SettingsError
from kymo.streams.settings import Settings
from kymo.streams.topics import FENCE_MS

HOME = {"HOME": "/h"}


def test_nothing_set_gives_the_defaults() -> None:
    assert Settings.from_env(HOME) == dataclasses.replace(Settings(), home=Path("/h/.local/share/kymo"))


def test_everything_set() -> None:
    env = {
        "KYMO_BROKERS": " a:9092, b:9093 ,",
        "KYMO_PREFIX": "lab.kymo-2",
        "KYMO_HOME": "/k",
        "KYMO_PARTITIONS": "24",
        "KYMO_REPLICATION": "3",
        "KYMO_KAFKA_SECURITY_PROTOCOL": "sasl_ssl",
        "KYMO_KAFKA_SECURITY_SASL_MECHANISM": "PLAIN",
        "KYMO_KAFKA_SECURITY_SASL_USERNAME": "u",
        "KYMO_KAFKA_SECURITY_SASL_PASSWORD": "p",
        "KYMO_KAFKA_SECURITY_SSL_CAFILE": "/ca",
        "KYMO_SESSION_TIMEOUT_S": "10.5",
        "KYMO_METRICS_PORT": "-1",
        "KYMO_WRITE_DERIVED": "On",
    }
    settings = Settings.from_env(env)
    assert (settings.brokers, settings.prefix, settings.home) == ("a:9092,b:9093", "lab.kymo-2", Path("/k"))
    assert (settings.partitions, settings.replication, settings.metrics_port) == (24, 3, -1)
    assert (settings.session_timeout_s, settings.write_derived) == (10.5, True)
    assert settings.kafka_python() == {
        "bootstrap_servers": ["a:9092", "b:9093"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "u",
        "sasl_plain_password": "p",
        "ssl_cafile": "/ca",
    }


def test_a_run_has_few_partitions_unless_told() -> None:
    plain, told = Settings.from_env(HOME), Settings.from_env(HOME | {"KYMO_PARTITIONS": "5"})
    assert (plain.partitions, plain.under("kymo.7").partitions, plain.under("kymo.7").prefix) == (12, 2, "kymo.7")
    assert (told.partitions, told.under("kymo.7").partitions) == (5, 5)
    # Another prefix is no run, even one that begins alike.
    assert plain.under("kymono").partitions == plain.under("lab").partitions == 12


def test_a_plain_connection_names_no_secrets() -> None:
    plain = Settings.from_env(HOME | {"KYMO_BROKERS": "a:1", "KYMO_KAFKA_SECURITY_SASL_PASSWORD": "p"}).kafka_python()
    assert plain == {"bootstrap_servers": ["a:1"], "security_protocol": "PLAINTEXT"}


@pytest.mark.parametrize(
    ("env", "home"),
    [
        ({"KYMO_HOME": "/a", "XDG_DATA_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_DATA_HOME": "/b", "HOME": "/c"}, "/b/kymo"),
        ({"HOME": "/c"}, "/c/.local/share/kymo"),
    ],
)
def test_where_home_is(env: dict[str, str], home: str) -> None:
    assert Settings.from_env(env).home == Path(home)


def test_without_a_home_the_current_folder_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings.from_env({}).home == tmp_path / ".kymo"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KYMO_PARTITIONS", "twelve"),
        ("KYMO_PARTITIONS", "0"),
        ("KYMO_PARTITIONS", "1.5"),
        ("KYMO_PARTITIONS", "nan"),
        ("KYMO_PARTITIONS", "inf"),
        ("KYMO_REPLICATION", "-1"),
        ("KYMO_METRICS_PORT", "70000"),
        ("KYMO_PREFIX", "my topics"),
        ("KYMO_PREFIX", "a/b"),
        ("KYMO_WRITE_DERIVED", "maybe"),
        ("KYMO_KAFKA_SECURITY_PROTOCOL", "TLS"),
    ],
)
def test_what_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}={value}".replace(".", r"\.")):
        Settings.from_env(HOME | {name: value})


def test_a_worker_is_replaced_only_when_its_records_are_refused() -> None:
    """Else one that was stopped and goes on could still publish what another has published since."""
    with pytest.raises(SettingsError, match="from 5 to 300"):
        Settings.from_env(HOME | {"KYMO_SESSION_TIMEOUT_S": f"{FENCE_MS / 1000:g}"})


def test_empty_variables_count_as_not_set() -> None:
    names = ("KYMO_BROKERS", "KYMO_PREFIX", "KYMO_HOME", "KYMO_PARTITIONS", "KYMO_WRITE_DERIVED", "KYMO_METRICS_PORT")
    assert Settings.from_env(HOME | dict.fromkeys(names, "")) == Settings.from_env(HOME)
