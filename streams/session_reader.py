"""Session metadata read back from Kafka. In: Settings. Out: by session, what ``kymo.sessions`` says of it; times in Unix ns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streams.broker.read import read_records
from streams.errors import MessageError
from streams.sessions import plain_name, read_session
from streams.settings import Settings
from streams.topics import Names


def read_sessions(settings: Settings, on_odd: Callable[[str], None] = lambda text: None) -> dict[str, dict[str, Any]]:
    """What is known of each session that is not deleted, in the order of the newest records.

    Parameters
    ----------
    settings : Settings
        Broker and prefix.
    on_odd : callable
        Told, in words, of a record that is none; it is passed over.

    Raises
    ------
    TopicError, BrokerError
        No such topic, or no broker.
    """
    topic, sessions = Names(settings.prefix).of("sessions"), dict[str, dict[str, Any]]()
    for record in read_records(settings, topic):
        try:
            session = plain_name((record.key or b"").decode(errors="replace"))
            found = None if record.value is None else read_session(record.value)
        except MessageError as error:
            on_odd(f"{topic}, partition {record.partition}, offset {record.offset}: {error}")
            continue
        sessions.pop(session, None)
        if found is not None:
            sessions[session] = found
    return sessions
