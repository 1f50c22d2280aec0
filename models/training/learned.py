"""What a bundle has learned from. In: windows, a bundle's manifest, recordings. Out: digests of sessions and subjects; which it knows.

A manifest holds the digests and not the names, so that a bundle tells nobody who was recorded, only whether somebody was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from models.bundle import Bundle
from models.data.dataset import add_input, stream_of
from models.data.examples import Dataset
from models.data.splits import session_of
from processors.recipe.load import Recipe
from streams.recording import Recording

#: Where a manifest's lineage has them.
LEARNED = "learned"


def name_digest(name: str) -> str:
    """16 hexadecimal digits of a session's or subject's name."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def learned_from(dataset: Dataset) -> dict[str, list[str]]:
    """For the lineage: digests of all sessions and subjects of a data set, held out for validation or not.

    Those held out have had a say, too: in when to stop, in which model to take, and where the model was refitted in its weights.
    """
    examples = dataset.examples
    return {
        "sessions": sorted({name_digest(session_of(example)) for example in examples}),
        "subjects": sorted({name_digest(example.subject) for example in examples if example.subject}),
    }


def knows(bundle: Bundle, session: str, subject: str = "") -> bool | None:
    """Whether a bundle has learned from a session, or from another one of the subject if one is given; None if it does not say."""
    said: dict[str, Any] | None = bundle.manifest.get("lineage", {}).get(LEARNED)
    if said is None:
        return None
    return name_digest(session) in said["sessions"] or bool(subject and name_digest(subject) in said["subjects"])


class Watch:
    """Lets recordings through, and says how many of them a bundle was trained on."""

    def __init__(self, bundle: Bundle, recipe: Recipe) -> None:
        self._bundle, self._recipe = bundle, recipe
        self._found: dict[str, dict[str, Any]] = {}
        self._known: dict[str, int] = {}  # by path, sessions of a name that it has learned from

    def through(self, recordings: Iterable[Recording]) -> Iterator[Recording]:
        """The recordings, as they are."""
        for recording in recordings:
            stream = stream_of(recording, self._recipe)
            if stream is not None:
                add_input(self._found, recording, stream)
                known = bool(knows(self._bundle, recording.session))
                self._known[recording.path] = self._known.get(recording.path, 0) + known
            yield recording

    @property
    def known(self) -> int:
        """Recordings that the bundle was trained on: of files that are as they were, or of an archive that has grown since."""
        trained = {
            one.get("path"): one.get("sha256") for one in self._bundle.manifest.get("lineage", {}).get("inputs", [])
        }
        same = set(trained.values())
        return sum(
            found["recordings"] if found["sha256"] in same else self._known[path] if path in trained else 0
            for path, found in self._found.items()
        )

    @property
    def recordings(self) -> int:
        """All that the recipe takes."""
        return sum(found["recordings"] for found in self._found.values())

    def note(self) -> str:
        """One line about it; empty where there is nothing to say."""
        if not self.known:
            return ""
        return (
            f"{self._bundle.id} was trained on {self.known} of these {self.recordings} recordings: "
            "the scores do not say how it does on new ones"
        )
