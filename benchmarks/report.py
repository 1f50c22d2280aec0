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
#: By key of a row: heading, and how its value is shown.
_COLUMNS = {
    "peer": ("", "{}"),
    "than": ("than", "{}"),
    "rate": ("M channel-samples/s", "{:.2f}"),
    "spread": ("lowest to highest", "{}"),
    "times_slowest": ("times the slowest", "{:.1f}"),
    "rate_cpu": ("M a processor-second", "{:.2f}"),
    "windows": ("windows", "{:,}"),
    "pss_mb": ("memory (proportional share), MB", "{:.0f}"),
    "rss_mb": ("resident, MB", "{:.0f}"),
    "peak_mb": ("most resident, MB", "{:.0f}"),
    "chunk": ("chunks of", "{}"),
    "of": ("by", "{}"),
    "here_bare": ("Kymo, times the bare loop", "{:.2f}"),
    "there_bare": ("the other Kymo, times the bare loop", "{:.2f}"),
    "here_there": ("Kymo, times the other", "{:.2f}"),
    "p50_ms": ("p50, ms", "{:.1f}"),
    "p95_ms": ("p95, ms", "{:.1f}"),
    "p99_ms": ("p99, ms", "{:.1f}"),
    "max_ms": ("most, ms", "{:.1f}"),
    "mb_s": ("MB/s", "{:.0f}"),
    "mb_s_spread": ("lowest to highest", "{}"),
    "mb_cpu_s": ("MB a processor-second", "{:.0f}"),
    "us_message": ("µs of processor a message", "{:.1f}"),
    "file_mb": ("MB on the disk", "{:.0f}"),
    "sent_mb": ("MB sent", "{:,.0f}"),
    "behind_ms": ("behind at the end, ms", "{:.0f}"),
    "sessions": ("sessions", "{:,}"),
    "ready_s": ("ready after, s", "{}"),
    "pause_ms": ("longest pause of the loop, ms", "{:.0f}"),
    "frames": ("78 frames a window", "{}"),
    "window_mb": ("pixels of a window, MB", "{:.1f}"),
    "caught_up_s": ("caught up with in, s", "{:.0f}"),
    "step": ("30 ms a frame", "{}"),
    "offered": ("frames/s offered", "{}"),
    "possible": ("possible", "{:.1f}"),
    "out": ("out", "{:.1f}"),
    "share": ("of the possible", "{:.2f}"),
    "dropped": ("dropped", "{:,}"),
    "cores": ("cores of the worker", "{:.2f}"),
    "workers": ("workers", "{}"),
    "devices": ("devices", "{}"),
    "shape": ("windows of", "{}"),
    "dtype": ("dtype", "{}"),
    "frames_per_s": ("frames/s", "{:,.0f}"),
    "windows_per_s": ("windows/s", "{:,.0f}"),
    "of_limit": ("of the limit", "{:.2f}"),
    "kymo_is_faster_by": ("Kymo is faster by", "{:.1f} x"),
    "network": ("ms a window", "{}"),
    "batch": ("batch", "{}"),
    "way": ("", "{}"),
    "ms": ("ms", "{:.3f}"),
    "lowest_ms": ("lowest", "{:.3f}"),
    "agent_is_faster_by": ("agent is faster by", "{:.1f} x"),
    "must_reach": ("must reach", "{} x"),
    "clock_s": ("s", "{:.2f}"),
    "cpu_s": ("s of the processor", "{:.2f}"),
    "clock": ("faster by", "{:.1f} x"),
    "cpu": ("of the processor", "{:.1f} x"),
    "entry_mb": ("on the disk, MB", "{:.0f}"),
    "what": ("", "{}"),
    "samples": ("samples", "{:,}"),
    "kymo_clock_s": ("Kymo, s", "{:.3f}"),
    "loop_clock_s": ("loop, s", "{:.2f}"),
    "kymo_cpu_s": ("Kymo, s of the processor", "{:.3f}"),
    "loop_cpu_s": ("loop, s of the processor", "{:.2f}"),
    "kymo_mb": ("Kymo's file, MB", "{:.0f}"),
    "loop_mb": ("loop's file, MB", "{:.0f}"),
    "plans": ("unseen plans", "{}"),
    "macro_f1": ("macro F1", "{:.3f}"),
    "macro_precision": ("macro precision", "{:.3f}"),
    "macro_recall": ("macro recall", "{:.3f}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "n": ("windows", "{:,}"),
    "border_f1": ("macro F1 on borders", "{:.3f}"),
    "border_windows": ("windows on borders", "{:,}"),
    "seconds": ("s", "{:.0f}"),
    "populations": ("populations", "{}"),
    "people": ("people", "{}"),
    "architecture": ("bundled", "{}"),
    "planted": ("planted", "{}"),
    "protocol": ("protocol", "{}"),
    "interval": ("90 % interval", "{0[0]:.2f} to {0[1]:.2f}"),
    "null_mean": ("by permutations", "{:.2f}"),
    "p": ("p", "{:.3f}"),
    "unseen": ("new people each", "{:,}"),
    "score": ("%", "{}"),
    "printed": ("printed", "{:.1f}"),
    "true": ("true", "{:.1f}"),
    "error": ("printed less true", "{:+.1f}"),
    "error_of_mean": ("±", "{:.1f}"),
    "covered": ("90 % interval holds", "{:.1f}"),
    "width": ("its width", "{:.1f}"),
    "bootstrap_covered": ("bootstrap holds", "{:.1f}"),
    "bootstrap_width": ("its width", "{:.1f}"),
}
#: By comparison, the keys that are shown.
_TABLES = {
    "kernels": "shape dtype peer windows_per_s of_limit kymo_is_faster_by",
    "animation": "peer frames_per_s kymo_is_faster_by",
    "dataset": "shape windows peer clock_s cpu_s",
    "dataset_ratios": "shape peer than clock cpu",
    "dataset_memory": "sessions windows peak_mb entry_mb",
    "serving": "network batch way ms lowest_ms agent_is_faster_by must_reach",
    "synth": "what samples kymo_clock_s loop_clock_s clock kymo_cpu_s loop_cpu_s cpu kymo_mb loop_mb",
    "magnetic": "plans peer macro_f1 macro_precision macro_recall accuracy n border_f1 border_windows seconds",
    "scores": "score populations unseen printed true error error_of_mean covered width bootstrap_covered bootstrap_width",
    "populations": "people architecture",
    "listeners": "planted peer accuracy interval people seconds",
    "music": "protocol peer accuracy interval null_mean p",
    "throughput": "peer rate spread times_slowest rate_cpu windows pss_mb",
    "beside": "chunk of here_bare there_bare here_there spread",
    "latency": "peer p50_ms p95_ms p99_ms max_ms windows",
    "memory": "peer pss_mb rss_mb peak_mb",
    "archive": "peer mb_s mb_s_spread mb_cpu_s us_message peak_mb file_mb sent_mb behind_ms",
    "takeover": "sessions ready_s pause_ms",
    "frames": "frames window_mb windows sent_mb caught_up_s peak_mb",
    "slow": "step offered possible out share dropped pause_ms",
    "joined": "sessions windows cores p50_ms p99_ms max_ms",
    "conditioned": "sessions windows cores p50_ms p99_ms max_ms",
    "workers": "workers rate spread",
    "devices": "devices peer rate spread rate_cpu pss_mb",
}


def machine() -> Row:
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
    keys = _TABLES[comparison].split()
    lines = [[_COLUMNS[key][0] for key in keys], ["---" if _COLUMNS[key][0] == "" else "---:" for key in keys]]
    lines += [[_cell(key, row) for key in keys] for row in (_shown(row, rows) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(key: str, row: Row) -> str:
    return "-" if row.get(key) is None else _COLUMNS[key][1].format(row[key])


def _shown(row: Row, rows: Sequence[Row]) -> Row:
    if "rate" not in row:
        return row
    out = row | {"rate": row["rate"] / 1e6, "times_slowest": row["rate"] / min(r["rate"] for r in rows)}
    out["spread"] = f"{min(row['rates']) / 1e6:.2f} to {max(row['rates']) / 1e6:.2f}"
    return out | ({"rate_cpu": row["rate_cpu"] / 1e6} if "rate_cpu" in row else {})
