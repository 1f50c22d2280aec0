"""Tables of what was measured. In: rows of figures. Out: text for a terminal, which is Markdown too, and the machine they hold for."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("numpy", "scipy", "onnxruntime", "aiokafka", "confluent-kafka", "faust-streaming", "quixstreams")
#: By comparison: key of a row, heading, and how the number is shown.
_COLUMNS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "throughput": (
        ("peer", "", "{}"),
        ("rate", "M channel-samples/s", "{:.2f}"),
        ("spread", "lowest to highest", "{}"),
        ("times_slowest", "times the slowest", "{:.1f}"),
        ("rate_cpu", "M a processor-second", "{:.2f}"),
        ("windows", "windows a run", "{:,}"),
        ("pss_mb", "memory after it, MB", "{:.0f}"),
    ),
    "beside": (
        ("chunk", "chunks of", "{}"),
        ("of", "by", "{}"),
        ("here_bare", "Kymo, times the bare loop", "{:.2f}"),
        ("there_bare", "the other Kymo, times the bare loop", "{:.2f}"),
        ("here_there", "Kymo, times the other", "{:.2f}"),
        ("spread", "lowest to highest round", "{}"),
    ),
    "latency": (
        ("peer", "", "{}"),
        ("p50_ms", "p50, ms", "{:.1f}"),
        ("p95_ms", "p95, ms", "{:.1f}"),
        ("p99_ms", "p99, ms", "{:.1f}"),
        ("max_ms", "most, ms", "{:.1f}"),
        ("windows", "windows", "{:,}"),
    ),
    "memory": (
        ("peer", "", "{}"),
        ("pss_mb", "proportional share, MB", "{:.0f}"),
        ("rss_mb", "resident, MB", "{:.0f}"),
        ("peak_mb", "most resident, MB", "{:.0f}"),
    ),
    "archive": (
        ("peer", "", "{}"),
        ("mb_s", "MB/s", "{:.0f}"),
        ("mb_s_spread", "lowest to highest", "{}"),
        ("mb_cpu_s", "MB a processor-second", "{:.0f}"),
        ("us_message", "µs of processor a message", "{:.1f}"),
        ("peak_mb", "most resident, MB", "{:.0f}"),
        ("file_mb", "MB on the disk", "{:.0f}"),
        ("sent_mb", "of MB sent", "{:.0f}"),
        ("behind_ms", "behind at the end, ms", "{}"),
    ),
    "takeover": (
        ("sessions", "ended sessions", "{:,}"),
        ("ready_s", "ready after, s", "{}"),
        ("pause_ms", "longest pause of the loop, ms", "{:.0f}"),
    ),
    "frames": (
        ("frames", "78 frames a window", "{}"),
        ("window_mb", "pixels of a window, MB", "{:.1f}"),
        ("windows", "windows", "{:,}"),
        ("sent_mb", "sent, MB", "{:,.0f}"),
        ("seconds", "caught up with in, s", "{:.0f}"),
        ("peak_mb", "most resident, MB", "{:.0f}"),
    ),
    "slow": (
        ("step", "30 ms a frame", "{}"),
        ("offered", "frames/s offered", "{}"),
        ("possible", "possible", "{:.1f}"),
        ("out", "out", "{:.1f}"),
        ("share", "of the possible", "{:.2f}"),
        ("dropped", "dropped", "{:,}"),
        ("pause_ms", "longest pause of the loop, ms", "{:.0f}"),
    ),
    "joined": (
        ("sessions", "sessions of four signals", "{:,}"),
        ("windows", "windows", "{:,}"),
        ("cores", "cores of the worker", "{:.2f}"),
        ("p50_ms", "p50, ms", "{:.1f}"),
        ("p99_ms", "p99, ms", "{:.1f}"),
        ("max_ms", "most, ms", "{:.1f}"),
    ),
    "workers": (
        ("workers", "workers", "{}"),
        ("rate", "M channel-samples/s", "{:.2f}"),
        ("spread", "lowest to highest", "{}"),
    ),
    "devices": (
        ("devices", "devices", "{}"),
        ("peer", "", "{}"),
        ("rate", "M channel-samples/s", "{:.2f}"),
        ("spread", "lowest to highest", "{}"),
        ("rate_cpu", "M a processor-second", "{:.2f}"),
        ("pss_mb", "memory after it, MB", "{:.0f}"),
    ),
}


def machine() -> Row:
    """What the figures hold for."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES},
    }


def commit(checkout: Path = ROOT) -> str:
    """What a checkout stands at; `?` where git does not know."""
    line = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip() or "?"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return found or platform.processor() or platform.machine()


def table(comparison: str, rows: Sequence[Row]) -> str:
    """A comparison as a Markdown table.

    Examples
    --------
    >>> print(table("workers", [{"workers": 1, "rate": 9e6, "rates": [8_000_000, 10_000_000]}]))
    | workers | M channel-samples/s | lowest to highest |
    | ---: | ---: | ---: |
    | 1 | 9.00 | 8.00 to 10.00 |
    """
    columns, rows = _COLUMNS[comparison], [_shown(row, rows) for row in rows]
    lines = [[heading for _, heading, _ in columns], ["---" if key == "peer" else "---:" for key, _, _ in columns]]
    lines += [[form.format(row[key]) for key, _, form in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(row: Row, rows: Sequence[Row]) -> Row:
    if "rate" not in row:
        return row
    out = row | {"rate": row["rate"] / 1e6, "times_slowest": row["rate"] / min(r["rate"] for r in rows)}
    out["spread"] = f"{min(row['rates']) / 1e6:.2f} to {max(row['rates']) / 1e6:.2f}"
    return out | ({"rate_cpu": row["rate_cpu"] / 1e6} if "rate_cpu" in row else {})
