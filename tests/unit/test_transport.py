"""Frames: whatever the bytes, there is a message or a `TransportError`, and never a wait for ever."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from octavo.base.config import EngineConfig, ModelConfig
from octavo.base.params import SamplingParams
from octavo.wire.messages import Abort, AddRequest, Call, CallResult, FromEngine, Heartbeat, Phase, Shutdown, ToEngine
from octavo.wire.transport import (
    MAX_FRAME_BYTES,
    MAX_QUEUED_MESSAGES,
    AsyncConnection,
    BlockingConnection,
    FrameReader,
    TransportError,
    encode_frame,
    make_decoder,
)

MESSAGES = [
    AddRequest(1, [1, 2, 3], SamplingParams(n=2, logit_bias={4: -1.5}, stop=("x",)), (2,), 1, -1, "salt", 1.5),
    Abort([1, 2, 2**63]),
    Call(1, "ping", ("a", 1, None)),
    Shutdown(),
]


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    theirs.settimeout(30)
    return ours, theirs


# ----------------------------------------------------------------------------------------------------- frames
@given(st.data())
def test_frames_come_out_whole_however_the_stream_is_cut(data: Any) -> None:
    stream = b"".join(map(encode_frame, MESSAGES))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    reader, frames = FrameReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        frames += reader.feed(stream[start:end])
    reader.finish()
    assert [make_decoder(ToEngine)(frame) for frame in frames] == MESSAGES


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_random_bytes_are_frames_or_an_error(chunks: list[bytes]) -> None:
    reader = FrameReader(max_frame_bytes=100)
    decode = make_decoder(ToEngine)
    try:
        for chunk in chunks:
            for frame in reader.feed(chunk):
                decode(frame)
    except TransportError:
        return


@given(st.sampled_from(MESSAGES), st.data())
def test_a_damaged_message_is_a_message_or_an_error(message: Any, data: Any) -> None:
    frame = bytearray(encode_frame(message)[4:])
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(make_decoder(ToEngine)(bytes(frame)), ToEngine)
    except TransportError:
        return


@pytest.mark.parametrize("length", [0, MAX_FRAME_BYTES + 1, 2**30, 2**32 - 1])
def test_a_length_out_of_range_breaks_the_stream_for_good(length: int) -> None:
    reader = FrameReader()
    with pytest.raises(TransportError, match=str(length)):
        reader.feed(length.to_bytes(4, "little"))
    with pytest.raises(TransportError):
        reader.feed(encode_frame(Shutdown()))


def test_frames_before_the_break_are_not_lost() -> None:
    reader = FrameReader()
    assert len(reader.feed(encode_frame(Shutdown()) + b"\xff" * 4)) == 1
    with pytest.raises(TransportError):
        reader.feed(b"")


@pytest.mark.parametrize("keep", [1, 3, 4, 5, -1])
def test_a_stream_that_ends_inside_a_frame_is_an_error(keep: int) -> None:
    reader = FrameReader()
    assert reader.feed(encode_frame(MESSAGES[0])[:keep]) == []
    with pytest.raises(TransportError):
        reader.finish()


@pytest.mark.parametrize(
    "frame",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of 4 billion elements that are not there
        b"\x94\xa4Call\x01\xa1x\xdd\xff\xff\xff\xff",
        b"\x94\xa4Call\x01\xa1x" + b"\x91" * 100_000,  # nested deeper than any stack
        b"\x94\xa4Call\x01\xa1x\x91\x81\x80\x01",  # a map whose key cannot be hashed
        b"\x80\x04K\x01.",  # pickle
        msgspec.msgpack.encode(["AddRequest", "1", [1], {}]),
        msgspec.msgpack.encode(["AddRequest", 1, [1.5], {}]),
        msgspec.msgpack.encode(["Nothing", 1]),
        msgspec.msgpack.encode(Heartbeat(1, 0.0, False)),  # a message of the other direction
    ],
)
def test_what_is_no_message_is_refused(frame: bytes) -> None:
    with pytest.raises(TransportError):
        make_decoder(ToEngine)(frame)


def test_the_configuration_crosses_unchanged() -> None:
    config = EngineConfig(model=ModelConfig(model="x", max_model_len=7))
    assert make_decoder(EngineConfig)(encode_frame(config)[4:]) == config
    with pytest.raises(TransportError):
        make_decoder(EngineConfig)(msgspec.msgpack.encode({"cache": {"block_size": "16"}}))


# ------------------------------------------------------------------------------------------- the engine's end
def test_messages_before_and_after_start_keep_their_order() -> None:
    ours, theirs = pair()
    connection = BlockingConnection(theirs)
    ours.sendall(encode_frame(EngineConfig()) + b"".join(map(encode_frame, MESSAGES)))
    assert connection.receive(EngineConfig) == EngineConfig()
    connection.start(ToEngine)
    assert [connection.inbox.get(timeout=30) for _ in MESSAGES] == MESSAGES
    ours.close()
    assert connection.inbox.get(timeout=30) is None
    connection.close()


@pytest.mark.parametrize("data", [b"", b"\x01\x00", b"\xff" * 9, encode_frame(Phase("other direction"))])
def test_the_end_of_the_stream_is_told_once_whatever_ended_it(data: bytes) -> None:
    ours, theirs = pair()
    connection, reasons = BlockingConnection(theirs), []
    connection.start(ToEngine, on_close=lambda *args: reasons.append(args))
    ours.sendall(encode_frame(Shutdown()) + data)
    ours.close()
    assert connection.inbox.get(timeout=30) == Shutdown()
    assert connection.inbox.get(timeout=30) is None
    assert len(reasons) == 1 and isinstance(reasons[0][0], TransportError) and reasons[0][1] == Shutdown()
    connection.close()


def test_closing_ones_own_end_is_not_the_peers_doing() -> None:
    ours, theirs = pair()
    connection, reasons = BlockingConnection(theirs), []
    connection.start(ToEngine, on_close=lambda *args: reasons.append(args))
    connection.close()
    assert connection.inbox.get(timeout=30) is None
    assert reasons == []
    ours.close()


def test_what_was_queued_is_sent_before_the_socket_closes() -> None:
    ours, theirs = pair()
    sender, receiver = BlockingConnection(theirs), BlockingConnection(ours)
    phases = [Phase("weights", str(i) * 1000) for i in range(200)]
    for phase in phases:
        sender.send(phase)
    reader = threading.Thread(target=sender.close, args=(30,))
    reader.start()
    assert [receiver.receive(FromEngine) for _ in phases] == phases
    with pytest.raises(TransportError):
        receiver.receive(FromEngine)
    reader.join(30)
    receiver.close()


def test_a_peer_that_does_not_read_costs_bounded_memory_and_no_heartbeat_waits() -> None:
    ours, theirs = pair()
    sender = BlockingConnection(theirs)

    def fill() -> None:
        for _ in range(3 * MAX_QUEUED_MESSAGES):  # one part with the writer, one in the queue, one left over
            sender.send(Phase("x" * 4096))

    filler = threading.Thread(target=fill, daemon=True)
    filler.start()
    while len(sender._outbox) < MAX_QUEUED_MESSAGES:
        pass
    sender.send(Heartbeat(1, 0.0, True), droppable=True)
    assert len(sender._outbox) <= MAX_QUEUED_MESSAGES
    ours.close()  # the peer dies: nobody stays blocked
    filler.join(30)
    assert not filler.is_alive()
    sender.close()


def test_a_message_that_cannot_be_encoded_brings_the_connection_down_on_both_sides() -> None:
    ours, theirs = pair()
    sender, receiver = BlockingConnection(theirs), BlockingConnection(ours)
    sender.send(CallResult(1, object()))
    with pytest.raises(TransportError):
        receiver.receive(FromEngine)
    sender.close()
    receiver.close()


# ---------------------------------------------------------------------------------------------- the API's end
def test_both_ends_talk_to_each_other() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        engine = BlockingConnection(theirs)
        engine.start(ToEngine)
        client: AsyncConnection[Any] = await AsyncConnection.open(ours, FromEngine)
        for message in MESSAGES:
            client.send(message)
        await client.drain()
        assert [engine.inbox.get(timeout=30) for _ in MESSAGES] == MESSAGES
        sent = [Phase("weights", str(i)) for i in range(100)]
        for phase in sent:
            engine.send(phase)
        engine.close(30)
        assert [message async for message in client] == sent
        assert await client.receive() is None
        await client.close()
        with pytest.raises(TransportError):
            client.send(Shutdown())

    asyncio.run(asyncio.wait_for(scenario(), 30))


@pytest.mark.parametrize("data", [b"\x01\x00", b"\xff" * 9, encode_frame(Shutdown())])
def test_nonsense_from_the_engine_is_an_error_of_the_client(data: bytes) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        client: AsyncConnection[Any] = await AsyncConnection.open(ours, FromEngine)
        theirs.sendall(data)
        theirs.close()
        with pytest.raises(TransportError):
            await client.receive()
        await client.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))
