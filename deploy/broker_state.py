"""The note that a running broker leaves in its data folder. In: a folder. Out: the process that serves it, if any."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy import kafka_server
from streams.files import write_whole


@dataclass(frozen=True, slots=True)
class BrokerInfo:
    """A running embedded broker."""

    bootstrap: str  # ``host:port`` for clients
    pid: int  # process of the server
    port: int  # its client port
    data_dir: Path  # its data folder and log
    log_file: Path
    # when the process began (seconds since 1970), so that another process under a reused pid is not taken for it
    created_s: float


def created_s(pid: int) -> float | None:
    """When the process began (seconds since 1970); None if there is no such process."""
    import psutil

    try:
        process = psutil.Process(pid)
        # Dead but not yet reaped by whoever started it: as good as gone.
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def alive(info: BrokerInfo) -> bool:
    """Whether the very process that `info` names still runs."""
    found_s = created_s(info.pid)
    return found_s is not None and abs(found_s - info.created_s) < 1.0


def state_file(data_dir: Path) -> Path:
    """Where the note stands."""
    return data_dir / "broker.json"


def write_state(info: BrokerInfo) -> None:
    """Leave the note; a reader sees the old one or the new one, never half of it."""
    write_whole(state_file(info.data_dir), json.dumps(asdict(info), default=str))


def read_state(data_dir: Path) -> BrokerInfo | None:
    """Read the note back; None if there is none or it cannot be read."""
    try:
        state: dict[str, Any] = json.loads(state_file(data_dir).read_text())
        # The folder may have been moved or mounted elsewhere since: where it lies now counts.
        return BrokerInfo(**state | {"data_dir": data_dir, "log_file": kafka_server.log_file(data_dir)})
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None  # absent, or cut off by a full disk: Kafka's own lock still guards the data
