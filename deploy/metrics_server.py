"""Serves metrics. In: a registry. Out: ``/metrics``, ``/livez``, ``/readyz`` on a port, and a file to find them by.

The files stand in ``run/prometheus`` under KYMO_HOME, one a process, in the format of ``file_sd_configs``.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer, choose_encoder

from kymo.streams.errors import SettingsError
from kymo.streams.files import write_whole
from kymo.streams.settings import Settings

PORTS = 200  # how many ports are tried, from the first on
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
Question = tuple[Callable[[], bool], str]


class Server:
    """A running server, or none where the settings ask for none."""

    def __init__(
        self, port: int = -1, http: ThreadingWSGIServer | None = None, target_file: Path | None = None
    ) -> None:
        self.port, self._http, self._file = port, http, target_file

    def close(self) -> None:
        """Stop serving and take the file away; harmless if done before."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
        self._http = self._file = None


def serve_metrics(
    registry: CollectorRegistry,
    settings: Settings,  # `metrics_host`, `metrics_port` (the first one to try; 0 for any, -1 for none) and `home`
    role: str,  # what this process is, such as ``worker``
    ready: Callable[[], bool],  # whether ``/readyz`` answers 200 (else 503); called from the server's thread
    live: Callable[[], bool] = lambda: True,  # the same for ``/livez``: no means that only a new process helps
) -> Server:
    """Serve a registry until the server is closed."""
    if settings.metrics_port < 0:
        return Server()
    http = _bind(settings)
    http.set_app(_application(registry, {"/readyz": (ready, "ready"), "/livez": (live, "live")}))
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, name="metrics", daemon=True).start()
    port = int(http.server_address[1])
    return Server(port, http, _announce(settings, role, port))


def targets_folder(home: Path) -> Path:
    """Say where the files for Prometheus' file discovery stand."""
    return home / "run" / "prometheus"


def _bind(settings: Settings) -> ThreadingWSGIServer:
    first = settings.metrics_port
    for port in range(first, min(first + PORTS, 65_536)) if first else (0,):
        try:
            return _Http((settings.metrics_host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise SettingsError(
                    f"metrics at {settings.metrics_host}:{port}: {error.strerror or error}; "
                    "set KYMO_METRICS_HOST and KYMO_METRICS_PORT to what this machine can listen at (-1 for none)"
                ) from None
    raise SettingsError(
        f"metrics: ports {first} to {first + PORTS - 1} are all taken; set KYMO_METRICS_PORT to another, or 0 for any"
    )


class _Http(ThreadingWSGIServer):
    def __init__(self, address: tuple[str, int]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that goes away is nobody's error."""


class _Handler(WSGIRequestHandler):
    timeout = 10.0

    def log_message(self, *_: Any) -> None:
        """Scrapes are not news."""


def _application(registry: CollectorRegistry, questions: Mapping[str, Question]) -> Callable[..., list[bytes]]:
    def answer(environ: Mapping[str, str], respond: Callable[..., Any]) -> list[bytes]:
        path, content_type = environ["PATH_INFO"], "text/plain; charset=utf-8"
        if path == "/metrics":
            encode, content_type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
            status, body = "200 OK", encode(registry)
        elif path in questions:
            ask, word = questions[path]
            yes = _holds(ask)
            status, body = "200 OK" if yes else "503 Service Unavailable", f"{'' if yes else 'not '}{word}\n".encode()
        else:
            status, body = "404 Not Found", b"/metrics, /livez, /readyz\n"
        respond(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return answer


def _holds(ready: Callable[[], bool]) -> bool:
    try:
        return ready()
    except Exception:  # what it asks is only half there while the process starts
        return False


def _announce(settings: Settings, role: str, port: int) -> Path:
    import psutil

    folder = targets_folder(settings.home)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*-*.json"):
        pid = old.stem.rpartition("-")[2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            old.unlink(missing_ok=True)
    host = settings.metrics_host if settings.metrics_host in _LOOPBACK else socket.gethostname()
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    # No `instance`: Prometheus takes the address, which stays where a restarted process finds its port free again.
    target = {"targets": [address], "labels": {"role": role}}
    path = folder / f"{role}-{os.getpid()}.json"
    write_whole(path, json.dumps([target]))  # Prometheus may read at any moment
    return path


def find_server(home: Path, role: str, pid: int) -> str | None:
    """Address (``http://host:port``) of a process's metrics, or None while it serves none."""
    try:
        targets = json.loads((targets_folder(home) / f"{role}-{pid}.json").read_text())
        return f"http://{targets[0]['targets'][0]}"
    except (OSError, ValueError, LookupError, TypeError):
        return None


def is_ready(server: str, timeout_s: float = 2.0) -> bool:
    """See whether ``/readyz`` at an address from :func:`find_server` answers 200."""
    try:
        with urllib.request.urlopen(f"{server}/readyz", timeout=timeout_s) as reply:  # noqa: S310 (http, from our own file)
            return bool(reply.status == 200)
    except (OSError, HTTPException):
        return False
