"""A label column as intervals. In: one text a sample. Out: Labels, one for each run of equal texts, times in Unix
ns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from streams.labels.labels import Label, canonical, interval, rename
from streams.recording import StreamData

_NONE = ("nan", "<na>", "nat")


def canonical_all(texts: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Canonical, renamed text of each; each different one is worked out once. What table programs write for no value is none."""
    none = {text for text in set(texts) if text.strip().lower() in _NONE and text.strip() not in names}
    known = {text: "" if text in none else rename(canonical(text), names) for text in set(texts)}
    return [known[text] for text in texts]


def label_runs(texts: Sequence[str], stream: StreamData, name: str, author: str) -> list[Label]:
    """Labels of a stream's samples: an interval for each run of equal texts, broken at gaps; an empty text is no label."""
    out: list[Label] = []
    codes: dict[str, int] = {}
    coded = np.array([codes.setdefault(text, len(codes)) for text in texts], np.int64)
    at = 0
    for first, piece in stream.pieces:
        part = coded[at : at + len(piece)]
        cuts = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(part)]
        for a, b in pairwise(cuts):
            if b > a and texts[at + a]:
                if stream.times_ns is None:
                    start, end = stream.header.time_ns(first + a), stream.header.time_ns(first + b)
                else:
                    start, end = (int(stream.times_ns[min(at + i, len(texts) - 1)]) for i in (a, b))
                out.append(
                    interval(
                        session=stream.header.session,
                        set=name,
                        start_ns=start,
                        end_ns=end,
                        label=texts[at + a],
                        author=author,
                    )
                )
        at += len(piece)
    return out
