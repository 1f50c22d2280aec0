"""The one error tree. In: nothing. Out: exceptions whose text names the thing, what was expected, what came and what to do.

The command line prints the line of one and exits 1. One more stands where types are read (:class:`~kymo.streams.schema.SchemaError`).
"""

from __future__ import annotations

from pathlib import Path


class KymoError(Exception):
    """Base of every failure that a user can act on; ``str(error)`` is one line."""


class SettingsError(KymoError):
    """A ``KYMO_*`` variable that cannot be used."""


class RecipeError(KymoError):
    """A recipe that does not hold together."""

    def __init__(self, message: str, path: Path | str | None = None, line: int | None = None) -> None:
        where = f"{path}:{line}: " if path and line else f"{path}: " if path else f"line {line}: " if line else ""
        super().__init__(where + message)
        self.path, self.line, self.message = path, line, message


class FormatError(KymoError):
    """A step, window or model that does not fit what comes before it."""


class SourceError(KymoError):
    """A file that cannot be read as it stands."""

    def __init__(self, message: str, path: Path | str | None = None, row: int | None = None) -> None:
        where = f"{path}, row {row}: " if path and row else f"{path}: " if path else ""
        super().__init__(where + message)
        self.path, self.row, self.message = path, row, message


class EmptyFileError(SourceError):
    """A file without a sample, which says nothing, or that nothing happened."""


class EmptyKeepError(SourceError):
    """A file of which a recipe's `keep` leaves no row: no failure where others are left."""


class PlanError(SourceError):
    """A motion plan that cannot be carried out."""


class ChunkError(KymoError):
    """Bytes that are no Chunk, or a Chunk that contradicts itself."""

    REASONS = ("undecodable", "invalid", "key", "oversize")

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason, self.message = reason, message


class MessageError(KymoError):
    """Bytes that are no JSON object, or one with numbers, text or depth that nobody can work with."""


class EventError(KymoError):
    """Bytes that are no Event, or an Event that cannot be written."""


class BrokerError(KymoError):
    """The embedded broker failed, or a broker cannot be reached."""


class TopicError(KymoError):
    """A topic is missing, or configured otherwise than the table says."""


class DeliveryError(KymoError):
    """An output was not acknowledged, or this worker no longer owns what it was working on."""


class ArchiveError(KymoError):
    """A segment of the archive is damaged or missing, or cannot be written."""


class BundleError(KymoError):
    """A bundle is damaged, or does not fit its recipe."""


class TrainingError(KymoError):
    """Data from which nothing can be learned."""


class SourceWarning(UserWarning):
    """A file of a folder that is left out, since it cannot be read."""
