"""Every setting of a deployment, read from ``KYMO_*`` variables in this one file. Behaviour stands in recipes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kymo.streams.errors import SettingsError
from kymo.streams.topics import FENCE_MS

if TYPE_CHECKING:
    import ssl

#: Of a replay's own topics, unless KYMO_PARTITIONS says otherwise: each run brings as many topics as the live ones.
_RUN_PARTITIONS = 2
_SECURITY_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are and how big they may grow.

    Attributes
    ----------
    brokers : str
        ``KYMO_BROKERS``, ``host:port`` separated by commas; empty for the embedded broker.
    prefix : str
        ``KYMO_PREFIX``, first part of every topic's name.
    home : Path
        ``KYMO_HOME``, folder for the embedded broker's data, downloaded jars, the registry and run files.
    registry : str
        ``KYMO_REGISTRY``, folder or fsspec URL of the trained bundles; empty for ``registry`` in the home folder.
    partitions, replication : int
        ``KYMO_PARTITIONS``, ``KYMO_REPLICATION``, used when topics are created.
    run_partitions : int
        ``KYMO_PARTITIONS`` where it is set, for the topics of a run (`replay --run`).
    security_protocol, sasl_mechanism, sasl_username, sasl_password, ssl_cafile, ssl_certfile, ssl_keyfile : str
        ``KYMO_KAFKA_SECURITY_PROTOCOL`` and so on.
    session_timeout_s : float
        ``KYMO_SESSION_TIMEOUT_S``, after which a silent worker's partitions go to another; longer than
        a stopped worker's records live (:data:`~kymo.streams.topics.FENCE_MS`).
    metrics_port : int
        ``KYMO_METRICS_PORT``, first port to try for ``/metrics``; 0 for any, -1 for none.
    metrics_host : str
        ``KYMO_METRICS_HOST``, the address to serve them at; loopback unless said otherwise.
    cache_gb : float
        ``KYMO_CACHE_GB``, how large the data sets under ``cache`` in the home folder may be together, 10**9 bytes.
    write_derived : bool
        ``KYMO_WRITE_DERIVED``: a worker with both roles also publishes the derived topics.
    """

    brokers: str = ""
    prefix: str = "kymo"
    home: Path = Path(".kymo")
    registry: str = ""
    partitions: int = 12
    replication: int = 1
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = "SCRAM-SHA-256"
    sasl_username: str = ""
    sasl_password: str = ""
    ssl_cafile: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    session_timeout_s: float = 6.0
    metrics_port: int = 9400
    metrics_host: str = "127.0.0.1"
    cache_gb: float = 20.0
    write_derived: bool = False
    run_partitions: int = _RUN_PARTITIONS

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Settings of this process.

        Raises
        ------
        SettingsError
            If a variable cannot be used; the text names it.
        """
        e = os.environ if env is None else env
        security = {
            name: e[f"KYMO_KAFKA_SECURITY_{name.upper()}"]
            for name in (
                "sasl_mechanism",
                "sasl_username",
                "sasl_password",
                "ssl_cafile",
                "ssl_certfile",
                "ssl_keyfile",
            )
            if f"KYMO_KAFKA_SECURITY_{name.upper()}" in e
        }
        protocol = e.get("KYMO_KAFKA_SECURITY_PROTOCOL", "PLAINTEXT").upper()
        if protocol not in _SECURITY_PROTOCOLS:
            raise SettingsError(
                f"KYMO_KAFKA_SECURITY_PROTOCOL={protocol}: expected one of {', '.join(_SECURITY_PROTOCOLS)}"
            )
        return cls(
            brokers=",".join(b.strip() for b in e.get("KYMO_BROKERS", "").split(",") if b.strip()),
            prefix=_prefix(e),
            home=_home(e),
            registry=e.get("KYMO_REGISTRY", ""),
            partitions=_whole(e, "KYMO_PARTITIONS", 12, 1, 10_000),
            run_partitions=_whole(e, "KYMO_PARTITIONS", _RUN_PARTITIONS, 1, 10_000),
            replication=_whole(e, "KYMO_REPLICATION", 1, 1, 100),
            security_protocol=protocol,
            session_timeout_s=_number(e, "KYMO_SESSION_TIMEOUT_S", 6.0, FENCE_MS / 1000 + 1, 300.0),
            metrics_port=_whole(e, "KYMO_METRICS_PORT", 9400, -1, 65_535),
            metrics_host=e.get("KYMO_METRICS_HOST") or "127.0.0.1",
            cache_gb=_number(e, "KYMO_CACHE_GB", 20.0, 0.0, 1e6),
            write_derived=_yes(e, "KYMO_WRITE_DERIVED"),
            **security,
        )

    def under(self, prefix: str) -> Settings:
        """Settings for the topics of another prefix; those of a run stand below this one's, ``kymo.7`` below ``kymo``."""
        of_run = prefix.startswith(f"{self.prefix}.")
        return replace(self, prefix=prefix, partitions=self.run_partitions if of_run else self.partitions)

    def kafka_python(self) -> dict[str, Any]:
        """Connection arguments for kafka-python's clients."""
        arguments: dict[str, Any] = {
            "bootstrap_servers": self.brokers.split(","),
            "security_protocol": self.security_protocol,
        }
        sasl = ("sasl_mechanism", "sasl_plain_username", "sasl_plain_password")
        return arguments | self._secured(
            sasl, ("ssl_cafile", "ssl_certfile", "ssl_keyfile"), self.ssl_cafile, self.ssl_keyfile
        )

    def librdkafka(self) -> dict[str, Any]:
        """Connection arguments for librdkafka's clients."""
        import ssl

        arguments = {"bootstrap.servers": self.brokers, "security.protocol": self.security_protocol}
        usual = ssl.get_default_verify_paths()  # where Python looks; librdkafka would look elsewhere
        authorities = self.ssl_cafile or usual.cafile or usual.capath or ""
        files = ("ssl.ca.location", "ssl.certificate.location", "ssl.key.location")
        sasl = ("sasl.mechanism", "sasl.username", "sasl.password")
        return arguments | self._secured(sasl, files, authorities, self.ssl_keyfile or self.ssl_certfile)

    def _secured(
        self, sasl: tuple[str, str, str], files: tuple[str, str, str], authorities: str, key: str
    ) -> dict[str, Any]:
        """What the protocol needs of SASL and TLS, by a client's own names for it."""
        arguments: dict[str, Any] = {}
        if self.security_protocol.startswith("SASL"):
            arguments |= zip(sasl, (self.sasl_mechanism, self.sasl_username, self.sasl_password), strict=True)
        if self.security_protocol.endswith("SSL"):
            arguments |= {
                name: path for name, path in zip(files, (authorities, self.ssl_certfile, key), strict=True) if path
            }
        return arguments

    def ssl_context(self) -> ssl.SSLContext:
        """TLS as the settings say, for all clients; the files are read here.

        Raises
        ------
        SettingsError
            If a file is not there, or is not what its variable promises.
        """
        import ssl

        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
            path = getattr(self, name)
            try:
                if path:
                    Path(path).read_bytes()
            except OSError as error:
                raise SettingsError(_ssl_variable(name, path, error.strerror or str(error))) from None
        name = "ssl_cafile"
        try:
            context = ssl.create_default_context(cafile=self.ssl_cafile or None)
            if self.ssl_certfile:
                name = "ssl_certfile"  # no password: OpenSSL would ask for it at the terminal
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile or None, password="")
        except ssl.SSLError as error:
            why = f"holds nothing that can be used ({error.reason or error})"
            with_key = f" with key {self.ssl_keyfile}" if name == "ssl_certfile" and self.ssl_keyfile else ""
            raise SettingsError(_ssl_variable(name, getattr(self, name) + with_key, why)) from None
        return context


def _ssl_variable(name: str, path: str, why: str) -> str:
    return f"KYMO_KAFKA_SECURITY_{name.upper()}={path}: {why}; expected a PEM file"


def _number(env: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = env.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        raise SettingsError(f"{name}={text}: expected a number from {low:g} to {high:g}") from None
    if not low <= value <= high:
        raise SettingsError(f"{name}={text}: expected a number from {low:g} to {high:g}")
    return value


def _whole(env: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    value = _number(env, name, default, low, high)
    if value != int(value):
        raise SettingsError(f"{name}={env[name]}: expected a whole number from {low} to {high}")
    return int(value)


def _yes(env: Mapping[str, str], name: str) -> bool:
    text = env.get(name, "").strip().lower()
    if text not in ("", "0", "1", "false", "true", "no", "yes", "off", "on"):
        raise SettingsError(f"{name}={text}: expected 1 or 0")
    return text in ("1", "true", "yes", "on")


def _prefix(env: Mapping[str, str]) -> str:
    text = env.get("KYMO_PREFIX") or "kymo"
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", text):
        raise SettingsError(
            f"KYMO_PREFIX={text}: expected letters, digits, '.', '_' and '-', as in a Kafka topic's name"
        )
    return text


def _home(env: Mapping[str, str]) -> Path:
    if env.get("KYMO_HOME"):
        return Path(env["KYMO_HOME"]).expanduser()
    if env.get("XDG_DATA_HOME"):
        return Path(env["XDG_DATA_HOME"]) / "kymo"
    # Without a home folder (a bare container, cron) the current folder is the only place that the user will find.
    return Path(env["HOME"]) / ".local/share/kymo" if env.get("HOME") else Path(".kymo").absolute()
