"""What the client sends the engine beside requests."""

from __future__ import annotations

import asyncio

import pytest

from octavo.client.engine_link import VocabularySender
from octavo.wire.messages import Vocabulary
from support.client_fakes import EOS, TOKENIZER, FakeConnection


@pytest.mark.parametrize(("is_sent", "expected"), [(False, 1), (True, 0)])
def test_the_engine_is_sent_the_vocabulary_once(is_sent: bool, expected: int) -> None:
    """Also where it had it already when it started: a second one would take a second, and be ignored."""

    async def scenario() -> None:
        connection = FakeConnection()
        sender = VocabularySender(connection, TOKENIZER, (EOS,), is_sent=is_sent)
        for _ in range(2):
            await sender.prepare()
            sender.send_once()
        assert [type(message) for message in connection.sent] == [Vocabulary] * expected

    asyncio.run(scenario())
