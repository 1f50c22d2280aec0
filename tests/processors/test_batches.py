"""What a worker asks of Faust: in any thread, and in our words."""

from __future__ import annotations

import asyncio
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    InvalidSessionTimeoutError,
    UnsupportedCodecError,
)

from kymo.processors.faust_app import BatchApp, client_error
from kymo.streams.errors import BrokerError, DeliveryError
from kymo.streams.settings import Settings

SETTINGS = Settings(brokers="localhost:1", prefix="t")


def test_what_is_asked_before_the_start_makes_no_client_in_another_thread() -> None:
    app, answers = BatchApp("t.group", ["t.sensor"], SETTINGS, "me", lambda error: None), list[Any]()
    thread = Thread(target=lambda: answers.append((app.is_ready(), app.assigned(), app.is_stale())))
    thread.start()
    thread.join()
    assert answers == [(False, [], True)]
    assert app._consumer is None  # it would belong to that thread's loop


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (InvalidSessionTimeoutError(), BrokerError, "KYMO_SESSION_TIMEOUT_S"),
        (GroupAuthorizationFailedError("t.group"), BrokerError, "allow READ on group t.group"),
        (UnsupportedCodecError("zstd"), BrokerError, "compressed"),
        (CommitFailedError("rebalanced"), DeliveryError, "gave up"),
    ],
)
def test_errors_of_the_client_in_our_words(error: Exception, kind: type[Exception], text: str) -> None:
    told = client_error(error, SETTINGS, "t.group")
    assert isinstance(told, kind)
    assert text in str(told)
    assert "\n" not in str(told)


def test_a_fault_of_our_own_stays_what_it_is() -> None:
    error = KeyError("x")
    assert client_error(error, SETTINGS, "t.group") is error


@pytest.mark.parametrize("error", [DeliveryError("made again"), UnsupportedCodecError("zstd"), KeyError("x")])
def test_whatever_goes_wrong_while_records_are_taken_is_told_to_the_worker(error: Exception) -> None:
    told: list[BaseException] = []
    app = BatchApp("t.group", ["t.sensor"], SETTINGS, "me", told.append)

    async def take() -> None:
        consumer = app.consumer

        async def fetch() -> Any:
            raise error

        app.fetch = SimpleNamespace(next=fetch)
        fetcher = SimpleNamespace(_stopped=asyncio.Event())
        await consumer._drain_messages(fetcher)

    asyncio.run(take())
    assert [type(one) for one in told] == [type(client_error(error, SETTINGS, "t.group"))]
