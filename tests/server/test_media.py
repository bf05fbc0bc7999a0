"""Images, sounds, videos and files through every API, with a processor whose rows can be counted by hand."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidConfig
from octavo.media.decoder import MediaDecoder, helper
from octavo.media.fetcher import Fetcher
from octavo.served.media import media_reader
from support.media_fakes import (
    FILM_ROW,
    PLACEHOLDER,
    ROW,
    SOUND_ROW,
    FakeProcessor,
    HearingProcessor,
    WatchingProcessor,
    data_url,
    encoded,
    host,
    image_part,
    pdf,
    picture,
    png,
    response,
    wav,
)
from support.server_fakes import MODEL, Reply, Server, drive, engine_info, make_server

RED, BLUE = picture(16, 8, (255, 0, 0)), picture(8, 8, (0, 0, 255))
SOUND = base64.b64encode(wav(np.arange(250, dtype="<i2"))).decode()
MANY = '{"image": 4, "audio": 2, "video": 1, "file": 1}'


ROOMY = engine_info(max_model_len=20_000, max_request_tokens=20_000)


#: One for all tests: starting it is most of what they cost.
HELPER = helper()


@pytest.fixture(autouse=True, scope="module")
def closed() -> Iterator[None]:
    yield
    HELPER.close()


def decoder() -> MediaDecoder:
    return MediaDecoder(60.0, [HELPER])


def seeing(**config: Any) -> Server:
    fixed = {"processor": HearingProcessor(), "decoder": decoder()}
    return make_server(**{**fixed, "limit_mm_per_prompt": MANY, "info": ROOMY, **config})


def text(server: Server) -> str:
    """The prompt of the one request, as the model gets it."""
    (request,) = server.engine.requests
    return bytes(request.prompt_token_ids).decode()


def ask(server: Server, *parts: Any, **fields: Any) -> Reply:
    body = {"messages": [{"role": "user", "content": list(parts)}], **fields}
    return server.post("/v1/chat/completions", body)


def words(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


# ---------------------------------------------------------------- one form for all spellings
URL = data_url(encoded(RED))
SPELLINGS: dict[str, Any] = {
    "object": {"type": "image_url", "image_url": {"url": URL}},
    "detail": {"type": "image_url", "image_url": {"url": URL, "detail": "high"}},
    "string": {"type": "image_url", "image_url": URL},
    "bare": {"image_url": {"url": URL}},
    "bare string": {"image_url": URL},
    "input_image": {"type": "input_image", "image_url": URL},
    "input_image with a detail": {"type": "input_image", "image_url": URL, "detail": "auto"},
    "image": {"type": "image", "image": URL},
    "with a name": {"type": "image_url", "image_url": {"url": URL}, "uuid": "a"},
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_an_image_is_one_however_it_is_spelled(name: str) -> None:
    server = seeing()
    reply = ask(server, SPELLINGS[name], words("What?"))
    assert reply.status == 200
    assert text(server) == f"user:[{ROW * 2}]What?"
    (item,) = server.engine.requests[0].media
    assert (item.kind, item.spans) == ("image", ((6, 2),))
    assert reply.json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 0, "image_tokens": 2}


def test_several_images_of_several_turns_keep_their_places() -> None:
    server = seeing()
    messages = [
        {"role": "user", "content": [image_part(RED), words("a"), image_part(BLUE)]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [words("c"), image_part(RED)]},
    ]
    assert server.post("/v1/chat/completions", {"messages": messages}).status == 200
    assert text(server) == f"user:[{ROW * 2}]a[{ROW}]\nassistant:b\nuser:c[{ROW * 2}]"
    items = server.engine.requests[0].media
    assert [item.rows for item in items] == [2, 1, 2]
    assert items[0].digest == items[2].digest != items[1].digest
    for item in items:
        start, length = item.spans[0]
        assert server.engine.requests[0].prompt_token_ids[start : start + length] == [2] * length
    processor = server.model.media.processor  # type: ignore[union-attr]
    assert [tuple(pixels[0, 0]) for pixels in processor.images] == [(255, 0, 0), (0, 0, 255)]  # each of them once


def test_what_answers_begin_behind_ends_a_prompt_with_pictures() -> None:
    class Ending(FakeProcessor):
        end_ids = (7,)

    server = seeing(processor=Ending())
    assert ask(server, image_part(RED), words("What?")).status == 200
    assert text(server) == f"user:[{ROW * 2}]What?\x07"
    server = seeing(processor=Ending())
    assert ask(server, words("What?")).status == 200
    assert text(server) == "user:What?"


def test_images_of_equal_bytes_and_other_shapes_are_others() -> None:
    server = seeing()
    assert ask(server, image_part(picture(16, 8)), image_part(picture(8, 16))).status == 200
    first, second = server.engine.requests[0].media
    assert first.digest != second.digest


def test_detail_low_shows_less() -> None:
    server = seeing()
    large = {"type": "image_url", "image_url": {"url": data_url(encoded(picture(1024, 8))), "detail": "low"}}
    assert ask(server, large).status == 200
    assert server.model.media.processor.images[0].shape == (4, 512, 3)  # type: ignore[union-attr]


def test_the_newer_api_has_images_and_files() -> None:
    server = seeing()
    content = [
        {"type": "input_text", "text": "What?"},
        {"type": "input_image", "image_url": URL},
        {"type": "input_file", "filename": "a.pdf", "file_data": data_url(pdf("Hello"), "application/pdf")},
    ]
    reply = server.post("/v1/responses", {"input": [{"role": "user", "content": content}], "store": False})
    assert reply.status == 200
    assert text(server).startswith(f"user:What?[{ROW * 2}]a.pdf, page 1 of 1:\nHello[{ROW}")


def test_anthropics_api_has_images_and_documents() -> None:
    server = seeing()
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(encoded(RED)).decode()}
    content = [
        {"type": "image", "source": source},
        {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "Words."}},
        {"type": "text", "text": "What?"},
    ]
    body = {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": content}]}
    assert server.post("/v1/messages", body).status == 200
    assert text(server) == f"user:[{ROW * 2}]T\nWords.What?"
    assert server.post("/v1/messages/count_tokens", body).json() == {"input_tokens": len(text(server))}


def test_a_call_may_give_a_picture() -> None:
    server = seeing(tools="hermes")
    source = {"type": "url", "url": URL}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image", "source": source}]}
    messages = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
        {"role": "user", "content": [result]},
    ]
    assert server.post("/v1/messages", {"model": MODEL, "max_tokens": 5, "messages": messages}).status == 200
    assert text(server).endswith(f"tool:[{ROW * 2}]")


@pytest.mark.parametrize("image", [base64.b64encode(encoded(RED)).decode(), URL])
def test_ollamas_api_has_images_before_the_text(image: str) -> None:
    server = seeing()
    message = {"role": "user", "content": "What?", "images": [image]}
    assert server.post("/api/chat", {"model": MODEL, "messages": [message], "stream": False}).status == 200
    assert text(server) == f"user:[{ROW * 2}]What?"
    body = {"model": MODEL, "prompt": "What?", "images": [image], "stream": False}
    server.engine.requests.clear()
    assert server.post("/api/generate", body).status == 200
    assert text(server) == f"user:[{ROW * 2}]What?"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{SOUND}"}},
        {"audio_url": f"data:audio/wav;base64,{SOUND}"},
    ],
    ids=["input_audio", "audio_url", "bare"],
)
def test_sounds_are_heard(part: dict[str, Any]) -> None:
    server = seeing()
    reply = ask(server, words("Hear "), part, image_part(RED))
    assert reply.status == 200
    assert text(server) == f"user:Hear {SOUND_ROW * 3}[{ROW * 2}]"
    assert [(item.kind, item.spans) for item in server.engine.requests[0].media] == [
        ("audio", ((10, 3),)),
        ("image", ((14, 2),)),
    ]
    details = reply.json()["usage"]["prompt_tokens_details"]
    assert details == {"cached_tokens": 0, "image_tokens": 2, "audio_tokens": 3}


def test_a_video_is_its_frames() -> None:
    server = seeing(media_io_kwargs='{"video": {"num_frames": 2}}')
    frames = [picture(8, 8, color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    film = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    part = {"type": "video_url", "video_url": {"url": data_url(film, "video/gif")}}
    assert ask(server, part, words("What?")).status == 200
    assert text(server) == f"user:[{ROW}][{ROW}]What?"
    server.engine.requests.clear()
    listed = ",".join(base64.b64encode(encoded(frame, "JPEG")).decode() for frame in frames)
    assert ask(server, {"video_url": f"data:video/jpeg;base64,{listed}"}).status == 200
    assert text(server) == f"user:[{ROW}][{ROW}]"


def test_a_video_is_one_medium_where_the_model_knows_of_time() -> None:
    processor = WatchingProcessor()
    server = seeing(
        processor=processor, media_io_kwargs='{"video": {"num_frames": 2}}', mm_processor_kwargs='{"crop": 0}'
    )
    frames = [picture(8, 8, color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    film = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=[200, 300, 500])
    part = {"type": "video_url", "video_url": {"url": data_url(film, "video/gif")}}
    reply = ask(server, part, image_part(BLUE), words("What?"))
    assert reply.status == 200
    assert text(server) == f"user:({FILM_ROW * 2})[{ROW}]What?"
    ((shown, times, duration, options),) = processor.videos
    assert [tuple(frame[0, 0]) for frame in shown] == [(255, 0, 0), (0, 0, 255)]
    assert (times, duration, options) == ([0.0, 0.5], 1.0, {"crop": 0})
    items = server.engine.requests[0].media
    assert [(item.kind, item.spans) for item in items] == [("video", ((6, 2),)), ("image", ((10, 1),))]
    assert reply.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 3
    listed = ",".join(base64.b64encode(encoded(frame, "JPEG")).decode() for frame in frames)
    assert ask(server, {"video_url": f"data:video/jpeg;base64,{listed}"}).status == 200
    assert processor.videos[-1][1:3] == (None, 0.0)


def test_a_vocabulary_without_videos_has_their_frames() -> None:
    processor = WatchingProcessor()
    processor.video_placeholder_id = -1
    server = seeing(processor=processor)
    film = encoded(picture(8, 8), "GIF", save_all=True, append_images=[BLUE])
    assert ask(server, {"video_url": data_url(film, "video/gif")}).status == 200
    assert text(server) == f"user:[{ROW}][{ROW}]" and not processor.videos


def test_rows_that_are_ready_are_taken_as_they_are() -> None:
    server = seeing()
    out = io.BytesIO()
    np.save(out, np.arange(12, dtype=np.float32).reshape(3, 4))
    data = base64.b64encode(out.getvalue()).decode()
    assert ask(server, {"type": "image_embeds", "image_embeds": data}).status == 200
    (item,) = server.engine.requests[0].media
    assert item.kind == "embeds" and item.rows == 3 and item.tensors["rows"].shape == (3, 4)
    assert text(server) == f"user:[{ROW * 3}]"


# ---------------------------------------------------------------- what is sent again
def test_a_picture_that_is_sent_again_is_prepared_once_and_a_name_is_enough() -> None:
    server = seeing()
    named = image_part(RED) | {"uuid": "mine"}
    assert ask(server, named).status == ask(server, named).status == 200
    assert ask(server, {"type": "image_url", "image_url": None, "uuid": "mine"}).status == 200
    first, _, third = (request.media[0] for request in server.engine.requests)
    assert first.digest == third.digest
    assert len(server.model.media.processor.images) == 1  # type: ignore[union-attr]
    metrics = server.get("/metrics").body.decode()
    assert 'vllm:mm_cache_queries_total{model_name="tiny"} 3.0' in metrics
    assert 'vllm:mm_cache_hits_total{model_name="tiny"} 2.0' in metrics
    assert 'octavo:media_items_total{kind="image",model_name="tiny"} 2.0' in metrics


def test_a_name_is_its_callers_and_never_stands_for_other_content() -> None:
    server = seeing()
    assert ask(server, image_part(RED) | {"uuid": "mine"}, cache_salt="a").status == 200
    stolen = ask(server, {"type": "image_url", "image_url": None, "uuid": "mine"}, cache_salt="b")
    assert stolen.status == 400 and "Nothing is kept" in stolen.error["message"]
    assert ask(server, image_part(BLUE) | {"uuid": "mine"}, cache_salt="a").status == 200
    assert server.engine.requests[0].media[0].digest != server.engine.requests[1].media[0].digest


# ---------------------------------------------------------------- limits
@pytest.mark.parametrize("kind", ["image", "audio", "file"])
def test_one_of_each_unless_the_server_says_otherwise(kind: str) -> None:
    parts: dict[str, Any] = {
        "image": image_part(RED),
        "audio": {"type": "input_audio", "input_audio": {"data": SOUND}},
        "file": {"type": "file", "file": {"file_data": data_url(pdf("a"), "application/pdf")}},
    }
    server = seeing(limit_mm_per_prompt=None)
    assert ask(server, parts[kind]).status == 200
    reply = ask(server, parts[kind], parts[kind])
    assert reply.status == 400
    assert f"At most 1 {kind}(s) may be provided in one request." in reply.error["message"]
    assert reply.error["param"] == "messages.0.content.1"


def test_five_thousand_parts_are_refused_before_one_is_read() -> None:
    server = seeing()
    message = {"role": "user", "content": [{"type": "image_url", "image_url": "https://a.invalid/a"}] * 1000}
    reply = server.post("/v1/chat/completions", {"messages": [message] * 5})
    assert reply.status == 400 and "At most 4 image(s)" in reply.error["message"]
    assert server.model.media.stats.num_bytes == 0  # type: ignore[union-attr]


def test_options_of_requests_need_trust_and_stay_within_bounds() -> None:
    server = seeing()
    for name, value in (("mm_processor_kwargs", {"crop": 1}), ("media_io_kwargs", {"video": {"num_frames": 9}})):
        reply = ask(server, image_part(), **{name: value})
        assert (reply.status, reply.error["param"]) == (400, name)
        assert "--trust-request-mm-kwargs" in reply.error["message"]
    trusting = seeing(trust_request_mm_kwargs=True, mm_processor_kwargs='{"crop": 0}', max_video_frames=1)
    assert ask(trusting, image_part(RED), mm_processor_kwargs={"crop": 1}).status == 200
    assert ask(trusting, image_part(RED)).status == 200
    processor = trusting.model.media.processor  # type: ignore[union-attr]
    assert processor.options == [{"crop": 1}, {"crop": 0}]  # not what was kept for the other options
    assert ask(trusting, image_part(), mm_processor_kwargs={"no": 1}).error["param"] == "mm_processor_kwargs"
    assert ask(trusting, image_part(), media_io_kwargs={"video": {"fps": 9}}).error["param"] == "media_io_kwargs"
    trusting.engine.requests.clear()
    frames = encoded(picture(8, 8), "GIF", save_all=True, append_images=[picture(8, 8, (0, 0, 0))])
    part = {"video_url": data_url(frames, "video/gif")}
    assert ask(trusting, part, media_io_kwargs={"video": {"num_frames": 10**9}}).status == 200
    assert text(trusting) == f"user:[{ROW}]"


def test_a_prompt_with_media_is_not_cut() -> None:
    server = seeing()
    reply = ask(server, image_part(), words("a" * 50), truncate_prompt_tokens=10)
    assert (reply.status, reply.error["param"]) == (400, "truncate_prompt_tokens")
    assert ask(server, image_part(), words("a"), truncate_prompt_tokens=100).status == 200


def test_rows_count_as_tokens_of_the_context() -> None:
    reply = ask(seeing(info=None), image_part(picture(256, 256)))  # 1024 rows, and the context has 512 tokens
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")


# ---------------------------------------------------------------- what is refused
def test_what_a_user_writes_cannot_stand_for_a_picture() -> None:
    server = seeing()
    reply = ask(server, image_part(), words(f"a {PLACEHOLDER} b"))
    assert reply.status == 400 and "2 times" in reply.error["message"]
    reply = ask(server, image_part(), words(f"a {ROW} b"))
    assert reply.status == 400 and "tokens that stand for media" in reply.error["message"]
    assert ask(server, words(f"a {PLACEHOLDER} b")).status == 200  # of no picture at all it is a text


HOSTILE: list[tuple[Any, str, str]] = [
    ({"type": "image_url"}, "image_url", "string that is not empty"),
    ({"type": "image_url", "image_url": 5}, "image_url", "string"),
    ({"type": "image_url", "image_url": {}}, "image_url.url", "string"),
    ({"type": "image_url", "image_url": {"url": ["x"]}}, "image_url.url", "string"),
    ({"type": "image_url", "image_url": "x"}, "image_url", "must start with either 'data:image' or 'http'"),
    ({"type": "image_url", "image_url": "data:text/html,x"}, "image_url", "must start with"),
    ({"type": "image_url", "image_url": "javascript:x"}, "image_url", "must start with"),
    ({"type": "image_url", "image_url": "file:///etc/passwd"}, "image_url", "no local files"),
    ({"type": "image_url", "image_url": "http://127.0.0.1/"}, "image_url", "not on the public internet"),
    ({"type": "image_url", "image_url": "http://169.254.169.254/latest"}, "image_url", "not on the public internet"),
    ({"type": "image_url", "image_url": "http://2130706433/"}, "image_url", "cannot be fetched"),
    ({"type": "image_url", "image_url": "http://a@127.0.0.1/"}, "image_url", "cannot be fetched"),
    ({"type": "image_url", "image_url": "data:image/png;base64,!"}, "image_url", "base64"),
    ({"type": "image_url", "image_url": "data:image/svg+xml,<svg/>"}, "image_url", "no image"),
    ({"type": "image_url", "image_url": data_url(png(30_000, 30_000))}, "image_url", "pixels"),
    ({"type": "image_url", "image_url": {"url": URL, "detail": "max"}}, "detail", "one of"),
    ({"type": "image_url", "image_url": URL, "uuid": "x" * 300}, "uuid", "characters"),
    ({"type": "image_url", "image_url": URL, "uuid": 5}, "uuid", "string"),
    ({"type": "image"}, "image", "string"),
    ({"type": "image", "image": {"bytes": "x"}}, "image.url", "string"),
    ({"type": "input_image", "file_id": "file-1"}, "", "no kept files"),
    ({"type": "file", "file": {"file_id": "file-1"}}, "file.file_id", "no kept files"),
    ({"type": "file", "file": "x"}, "file", "object"),
    ({"type": "file", "file": {"file_data": data_url(b"x", "text/plain")}}, "file.file_data", "must start with"),
    ({"type": "file", "file": {"file_data": "eHg="}}, "file.file_data", "no PDF"),
    ({"type": "input_file", "file_url": "file:///etc/passwd"}, "file_url", "no local files"),
    ({"type": "input_audio", "input_audio": {}}, "input_audio.data", "string"),
    ({"type": "input_audio", "input_audio": {"data": "eHg="}}, "input_audio.data", "no sound"),
    ({"type": "audio_url", "audio_url": "data:image/png,x"}, "audio_url", "must start with"),
    ({"type": "video_url", "video_url": "data:video/mp4;base64,eHg="}, "video_url", "no video"),
    ({"type": "video_url", "video_url": "data:video/jpeg;base64,eHg=,!"}, "video_url", "base64"),
    ({"type": "image_embeds", "image_embeds": "eHg="}, "image_embeds", "NumPy"),
    ({"type": "image_embeds", "image_embeds": {"a": 1}}, "image_embeds", "string"),
    ({"type": "hologram", "hologram": "x"}, "", "cannot be read"),
]


@pytest.fixture(scope="module")
def hostile_server() -> Server:
    return seeing()


@pytest.mark.parametrize("row", HOSTILE, ids=lambda row: json.dumps(row[0])[:60])
def test_what_cannot_be_read_is_an_error_of_its_field(row: Any, hostile_server: Server) -> None:
    part, field, message = row
    server = hostile_server
    reply = ask(server, words("a"), part)
    assert reply.status == 400, reply.body
    assert message in reply.error["message"]
    path = reply.error["param"]
    expected = f"messages.0.content.1.{field}".rstrip(".")
    assert path == expected or (field == "" and path == "messages")
    assert not server.engine.requests


def test_a_processor_without_sounds_says_so() -> None:
    server = make_server(processor=FakeProcessor())
    reply = ask(server, {"type": "input_audio", "input_audio": {"data": SOUND}})
    assert reply.status == 400 and "no audio" in reply.error["message"]


TEXT_ONLY = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"image_url": URL}]}]}, "messages.0.content.0"),
    ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": URL}]}]},
     "input.0.content.0"),
    ("/v1/messages", {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": [
        {"type": "image", "source": {"type": "url", "url": URL}}]}]}, "messages.0.content.0"),
    ("/api/chat", {"model": MODEL, "messages": [{"role": "user", "content": "a", "images": [URL]}]},
     "messages.0.images"),
    ("/api/generate", {"model": MODEL, "prompt": "a", "images": [URL]}, "images"),
    ("/tokenize", {"messages": [{"role": "user", "content": [image_part()]}]}, "messages.0.content.0"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "mm_processor_kwargs": {"a": 1}},
     "mm_processor_kwargs"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "place"), TEXT_ONLY, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_model_that_takes_text_only_refuses_all_of_it(path: str, body: Any, place: str) -> None:
    server = make_server()
    reply = server.post(path, body)
    assert reply.status == 400
    assert place in reply.body.decode()
    assert not server.engine.requests


def test_such_a_model_is_not_told_how_many_it_takes() -> None:
    assert media_reader(None, ServerConfig(limit_mm_per_prompt='{"image": 0}')) is None
    with pytest.raises(InvalidConfig, match="takes text only"):
        media_reader(None, ServerConfig(limit_mm_per_prompt='{"image": 2}'))


def test_more_pictures_than_the_model_takes_of_a_request_cannot_be_allowed() -> None:
    assert media_reader(FakeProcessor(), ServerConfig(limit_mm_per_prompt='{"image": 4}'), most_items=4) is not None
    assert media_reader(FakeProcessor(), ServerConfig(limit_mm_per_prompt='{"image": 5}')) is not None
    with pytest.raises(InvalidConfig, match="limit-mm-per-prompt: image=5 .* at most 4"):
        media_reader(FakeProcessor(), ServerConfig(limit_mm_per_prompt='{"image": 5}'), most_items=4)


# ---------------------------------------------------------------- beside the replies
def test_tokens_are_counted_with_their_media() -> None:
    server = seeing()
    messages = [{"role": "user", "content": [image_part(RED), words("What?")]}]
    reply = server.post("/tokenize", {"messages": messages})
    assert reply.json()["count"] == len(f"user:[{ROW * 2}]What?")
    counted = server.post("/v1/chat/completions/input_tokens", {"messages": messages})
    assert counted.json()["input_tokens"] == reply.json()["count"]


def test_the_log_tells_of_media_and_not_what_they_show(caplog: pytest.LogCaptureFixture) -> None:
    server = seeing(disable_log_requests=False)
    with caplog.at_level("INFO"):
        assert ask(server, image_part(RED), words("What?")).status == 200
    line = next(record.getMessage() for record in caplog.records if "prompt tokens (" in record.getMessage())
    digest = server.engine.requests[0].media[0].digest.hex()[:12]
    assert f"(2 of them for 1 media: image {digest})" in line
    assert URL[:40] not in line


def test_a_picture_of_a_host_is_fetched() -> None:
    async def main() -> None:
        async with host("127.0.0.2", a=response(encoded(RED))) as there:

            async def resolver(name: str, port: int) -> list[str]:
                return ["127.0.0.2"]

            server = make_server(
                processor=FakeProcessor(),
                decoder=decoder(),
                fetcher=lambda config: Fetcher(config, resolver=resolver, permits=lambda address: True),
            )
            url = f"http://pictures.example:{there.port}/a"
            body = {"messages": [{"role": "user", "content": [{"image_url": url}, words("What?")]}]}
            reply = await drive(server.app, "POST", "/v1/chat/completions", body)
            assert reply.status == 200
            assert text(server) == f"user:[{ROW * 2}]What?"

    asyncio.run(main())


def test_a_file_of_the_allowed_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(RED))
    server = seeing(allowed_local_media_path=str(tmp_path))
    assert ask(server, {"image_url": f"file://{tmp_path}/a.png"}).status == 200
    assert ask(server, {"image_url": f"file://{tmp_path}/../a.png"}).status == 400
