"""Every setting of a deployment, read from ``KYMO_*`` variables in this one file. Behaviour stands in recipes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from kymo.streams.errors import SettingsError
from kymo.streams.schema import Rules, SchemaError, kinds_of
from kymo.streams.topics import FENCE_MS

if TYPE_CHECKING:
    import ssl

Partitions = Annotated[int, Rules(minimum=1, maximum=10_000)]
Protocol = Annotated[str, Rules(enum=("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"))]
_PREFIX = "letters, digits, '.', '_' and '-', as in a Kafka topic's name"
Prefix = Annotated[str, Rules(pattern=r"^[A-Za-z0-9._-]{1,200}\Z", expected=_PREFIX)]


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are and how big they may grow. A member's variable is ``KYMO_`` and its name, but where it says another."""

    brokers: str = ""  # ``host:port`` separated by commas; empty for the embedded broker
    prefix: Prefix = "kymo"  # first part of every topic's name
    home: Path = Path(".kymo")  # for the embedded broker's data, downloaded jars, the registry and run files
    registry: str = ""  # folder or fsspec URL of the trained bundles; empty for ``registry`` in the home folder
    partitions: Partitions = 12  # when topics are created, as the next
    replication: Annotated[int, Rules(minimum=1, maximum=100)] = 1
    security_protocol: Protocol = "PLAINTEXT"  # ``KYMO_KAFKA_SECURITY_PROTOCOL``
    sasl_mechanism: str = "SCRAM-SHA-256"  # ``KYMO_KAFKA_SECURITY_SASL_MECHANISM``, and so on
    sasl_username: str = ""
    sasl_password: str = ""
    ssl_cafile: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    # after which a silent worker's partitions go to another; longer than a stopped worker's records live
    session_timeout_s: Annotated[float, Rules(minimum=FENCE_MS // 1000 + 1, maximum=300)] = 6.0
    metrics_port: Annotated[int, Rules(minimum=-1, maximum=65_535)] = 9400  # first port to try; 0 for any, -1 for none
    metrics_host: str = "127.0.0.1"  # the address to serve ``/metrics`` at; loopback unless said otherwise
    # of data sets under ``cache`` in the home folder, 10**9 bytes
    cache_gb: Annotated[float, Rules(minimum=0, maximum=1e6)] = 20.0
    write_derived: bool = False  # whether a worker with both roles also publishes the derived topics
    # that do a recipe's slow step; 0 for one less than there are processors
    slow_processes: Annotated[int, Rules(minimum=0, maximum=1024)] = 0
    # live samples that wait for longer are dropped; 0: none
    slow_age_s: Annotated[float, Rules(minimum=0, maximum=86_400)] = 5.0
    # of a run's topics (`replay --run`): ``KYMO_PARTITIONS`` where it is set, for each run brings as many topics as the live ones
    run_partitions: Partitions = 2

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Settings of this process; a variable that cannot be used is named."""
        env = os.environ if env is None else env
        members: dict[str, Any] = {}
        for name, kind in kinds_of(cls).items():
            variable = _variable(name)
            if text := env.get(variable, ""):
                try:
                    members[name] = kind.take_text(text.upper() if name == "security_protocol" else text)
                except SchemaError as wrong:
                    raise SettingsError(f"{variable}={text}: expected {wrong.expected}") from None
        brokers = ",".join(b.strip() for b in members.get("brokers", "").split(",") if b.strip())
        return cls(**members | {"brokers": brokers, "home": _home(env)})

    def under(self, prefix: str) -> Settings:
        """Settings for the topics of another prefix; those of a run stand below this one's, ``kymo.7`` below ``kymo``."""
        of_run = prefix.startswith(f"{self.prefix}.")
        return replace(self, prefix=prefix, partitions=self.run_partitions if of_run else self.partitions)

    def kafka_python(self) -> dict[str, Any]:
        arguments = {"bootstrap_servers": self.brokers.split(","), "security_protocol": self.security_protocol}
        sasl = ("sasl_mechanism", "sasl_plain_username", "sasl_plain_password")
        files = {name: getattr(self, name) for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile")}
        return arguments | self._secured(sasl, files)

    def librdkafka(self) -> dict[str, Any]:
        import ssl

        arguments = {"bootstrap.servers": self.brokers, "security.protocol": self.security_protocol}
        usual = ssl.get_default_verify_paths()  # where Python looks; librdkafka would look elsewhere
        files = {
            "ssl.ca.location": self.ssl_cafile or usual.cafile or usual.capath or "",
            "ssl.certificate.location": self.ssl_certfile,
            "ssl.key.location": self.ssl_keyfile or self.ssl_certfile,
        }
        return arguments | self._secured(("sasl.mechanism", "sasl.username", "sasl.password"), files)

    def _secured(self, sasl: tuple[str, str, str], files: Mapping[str, str]) -> dict[str, Any]:
        """What the protocol needs of SASL and TLS, by a client's own names for it."""
        users = dict(zip(sasl, (self.sasl_mechanism, self.sasl_username, self.sasl_password), strict=True))
        return (users if self.security_protocol.startswith("SASL") else {}) | (
            {name: path for name, path in files.items() if path} if self.security_protocol.endswith("SSL") else {}
        )

    def ssl_context(self) -> ssl.SSLContext:
        """TLS as the settings say, for all clients; the files are read here, and refused if they are not what their variables promise."""
        import ssl

        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
            path = getattr(self, name)
            try:
                if path:
                    Path(path).read_bytes()
            except OSError as error:
                raise _ssl_error(name, path, error.strerror or str(error)) from None
        name = "ssl_cafile"
        try:
            context = ssl.create_default_context(cafile=self.ssl_cafile or None)
            if self.ssl_certfile:
                name = "ssl_certfile"  # no password: OpenSSL would ask for it at the terminal
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile or None, password="")
        except ssl.SSLError as error:
            why = f"holds nothing that can be used ({error.reason or error})"
            with_key = f" with key {self.ssl_keyfile}" if name == "ssl_certfile" and self.ssl_keyfile else ""
            raise _ssl_error(name, getattr(self, name) + with_key, why) from None
        return context


def _variable(name: str) -> str:
    if name == "run_partitions":
        return "KYMO_PARTITIONS"
    secured = name.startswith(("security_", "sasl_", "ssl_"))
    return f"{'KYMO_KAFKA_SECURITY_' if secured else 'KYMO_'}{name.removeprefix('security_').upper()}"


def _ssl_error(name: str, path: str, why: str) -> SettingsError:
    return SettingsError(f"{_variable(name)}={path}: {why}; expected a PEM file")


def _home(env: Mapping[str, str]) -> Path:
    if env.get("KYMO_HOME"):
        return Path(env["KYMO_HOME"]).expanduser()
    if env.get("XDG_DATA_HOME"):
        return Path(env["XDG_DATA_HOME"]) / "kymo"
    # Without a home folder (a bare container, cron) the current folder is the only place that the user will find.
    return Path(env["HOME"]) / ".local/share/kymo" if env.get("HOME") else Path(".kymo").absolute()
