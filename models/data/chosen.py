"""Which stream of a recording a recipe takes. In: a recording, a recipe. Out: one of its raw streams, or why none is taken.

Training, the gate, evaluation and `kymo run` all ask here, so that what is judged is what runs. A derived stream is what a chain
made, never what a recipe takes.
"""

from __future__ import annotations

from processors.recipe.load import Recipe
from streams.recording import Recording, StreamData


def stream_of(recording: Recording, recipe: Recipe) -> StreamData | None:
    """The raw stream that matches; of several the one that begins first, as online."""
    taken = [stream for stream, why in verdicts_on(recording, recipe) if why is None]
    return min(taken, key=lambda stream: stream.start_ns, default=None)


def verdicts_on(recording: Recording, recipe: Recipe) -> list[tuple[StreamData, str | None]]:
    """Each raw stream, with why the recipe does not take it; None where it does."""
    return [(s, recipe.matches(s.header.format)) for s in recording.streams if not s.header.chain]
