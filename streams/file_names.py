"""Names that become files and folders. In: a name that somebody else chose. Out: whether it may stand in a path.

One rule for all: recipes, digests of bundles, and whatever else a path is made of. What may be called anything, such as a session, goes
through :func:`streams.archive.export.file_stem` instead.
"""

from __future__ import annotations

import re

RULE = "letters, digits, `.`, `_` and `-`, no `.` first, 100 bytes at most"
_NAME = re.compile(r"[\w-][\w.-]*")


def is_file_name(name: object) -> bool:
    """Whether it is a name by :data:`RULE`, which leads nowhere but into its own folder.

    Examples
    --------
    >>> [is_file_name(name) for name in ("walk-07", "läufe.2", "..", "../up", "/etc", "", ".hidden", "a b", 7)]
    [True, True, False, False, False, False, False, False, False]
    """
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and len(name.encode(errors="replace")) <= 100


def is_inside(path: object) -> bool:
    """Whether a relative path, such as ``report/report.html``, stays inside the folder that it is joined to.

    Examples
    --------
    >>> [is_inside(path) for path in ("model.onnx", "report/a b.svg", "../x", "a/../../x", "/etc/x", "a\\\\..\\\\x", "")]
    [True, True, False, False, False, False, False]
    """
    return (
        isinstance(path, str)
        and not set("\\\0") & set(path)
        and all(part not in ("", ".", "..") for part in path.split("/"))
    )
