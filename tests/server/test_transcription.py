"""Windows of a sound, with an engine that says what a test wants."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from octavo.base.errors import InvalidRequest
from octavo.base.params import GenerateRequest
from octavo.client.generation import CompletionDelta, GenerationDelta
from octavo.served.transcription import Piece, Sound, SpeechWishes, Transcriber, Transcript, cut
from octavo.server.openai.subtitles import srt, vtt
from octavo.text.speech import SpeechVocabulary
from octavo.wire.messages import TokenLogprobs
from server.test_batch import Batch
from support.server_fakes import ByteTokenizer, FakeEngine, PlainRenderer, ServerConfig, engine_info, make_server

END, START, ENGLISH, GERMAN, TRANSCRIBE, TRANSLATE, PREVIOUS, SILENCE, TIMES = (
    256,
    257,
    258,
    259,
    260,
    261,
    262,
    263,
    270,
)
VOCABULARY = SpeechVocabulary(
    start_id=START, end_id=END, previous_id=PREVIOUS, no_speech_id=SILENCE, first_time=TIMES,
    languages={"en": ENGLISH, "de": GERMAN}, transcribe_id=TRANSCRIBE, translate_id=TRANSLATE,
)  # fmt: skip
#: A window is of 40 frames here: 0.4 s, 20 steps of time.
INFO = engine_info(encoder_channels=4, max_encoder_len=20, max_model_len=64)


def said(
    *tokens: str | int, logprob: float = -0.1, silence: float = -5.0, language: int = ENGLISH
) -> list[GenerationDelta]:
    """What the engine says for a window: texts, and steps of time."""
    ids = [language, TRANSCRIBE]
    for token in tokens:
        ids += list(token.encode()) if isinstance(token, str) else [TIMES + token]
    ids.append(END)
    scores = [TokenLogprobs(logprob, 1, [], []) for _ in ids]
    scores[0] = TokenLogprobs(-9.0, 1, [SILENCE], [silence])  # of a language, which counts for nothing
    return [GenerationDelta([CompletionDelta(0, "", ids, scores, "stop", None)], 1, 0, len(ids), True)]


def heard(
    windows: list[list[GenerationDelta]], num_frames: int, **wishes: object
) -> tuple[list[Piece], list[GenerateRequest], Transcript]:
    answers = iter(windows)
    engine = FakeEngine(lambda request: next(answers))
    sound = Sound(np.zeros((num_frames + 40, 4), np.float32), num_frames, num_frames / 100)

    async def run() -> tuple[list[Piece], Transcript]:
        transcriber = Transcriber(VOCABULARY, engine, ByteTokenizer(), PlainRenderer(), INFO, ServerConfig())
        transcript = Transcript(transcriber, sound, replace(SpeechWishes(request_id="r"), **wishes))
        try:
            return [piece async for piece in transcript.pieces()], transcript
        finally:
            await transcriber.close()

    pieces, transcript = asyncio.run(run())
    return pieces, engine.requests, transcript


def test_the_next_window_begins_where_the_last_whole_piece_ended() -> None:
    windows = [said(0, " one", 6, 6, " two", 10, 10, " thr"), said(0, " three", 8)]
    pieces, requests, transcript = heard(windows, 60)
    assert [(piece.start, piece.end, piece.text) for piece in pieces] == [
        (0.0, 0.12, " one"), (0.12, 0.2, " two"), (0.2, 0.36, " three"),
    ]  # fmt: skip
    assert [piece.seek for piece in pieces] == [0, 0, 20] and transcript.language == "en"
    first, second = requests
    assert first.prompt_token_ids == [START] and first.encoder_frames is not None
    assert first.encoder_frames.shape == (40, 4) and first.encoder_token_ids == [0] * 20
    # What was said before, with its times, and the language that was found.
    before = [TIMES, *b" one", TIMES + 6, TIMES + 6, *b" two", TIMES + 10]
    assert second.prompt_token_ids == [PREVIOUS, *before, START]
    assert first.params.speech is not None and second.params.speech is not None
    assert first.params.speech.first == ((ENGLISH, GERMAN), (TRANSCRIBE,))
    assert second.params.speech.first == ((ENGLISH,), (TRANSCRIBE,))


def test_a_text_that_repeats_itself_or_is_unlikely_is_asked_for_again() -> None:
    windows = [said(0, "ha" * 60, 20), said(0, " so?", 20, logprob=-2.0), said(0, " so", 20)]
    pieces, requests, _ = heard(windows, 40)
    assert [piece.text for piece in pieces] == [" so"] and pieces[0].temperature == 0.4
    assert [request.params.temperature for request in requests] == [0.0, 0.2, 0.4]
    # At a temperature that the caller names there is one try.
    pieces, requests, _ = heard([said(0, " so?", 20, logprob=-2.0)], 40, temperature=0.7, seed=3)
    assert [piece.text for piece in pieces] == [" so?"]
    assert [(request.params.temperature, request.params.seed) for request in requests] == [(0.7, 3)]


def test_where_nobody_speaks_there_is_no_text() -> None:
    windows = [said(0, " you", 20, logprob=-2.0, silence=-0.1), said(0, " now", 20)]
    pieces, requests, _ = heard(windows, 80)
    assert [(piece.text, piece.start) for piece in pieces] == [(" now", 0.4)]
    assert len(requests) == 2  # silence is not tried again


def test_language_task_and_prompt_are_told() -> None:
    _, requests, transcript = heard(
        [said(0, " hi", 20)], 40, language="German", task="translate", prompt=" Names: Ada "
    )
    [request] = requests
    assert request.params.speech is not None and request.params.speech.first == ((GERMAN,), (TRANSLATE,))
    assert request.prompt_token_ids == [PREVIOUS, *b" Names: Ada", START] and transcript.language == "de"
    # The last half of the context, and room for as much text.
    _, requests, _ = heard([said(0, " hi", 20)], 40, prompt="x" * 500)
    assert requests[0].prompt_token_ids == [PREVIOUS, *b"x" * 31, START]
    assert requests[0].params.max_tokens == 64 - 33
    with pytest.raises(InvalidRequest, match="no language 'xx'"):
        heard([], 40, language="xx")


@pytest.mark.parametrize(
    ("tokens", "pieces", "num_heard"),
    [
        ([], [(0.0, 0.4, 0)], 40),
        ([1, 2], [(0.0, 0.4, 2)], 40),  # no time at all
        ([TIMES + 2, 1, TIMES + 5], [(0.04, 0.1, 3)], 40),
        ([TIMES, 1, TIMES + 5, TIMES + 6, 2], [(0.0, 0.1, 3)], 10),
        ([TIMES, 1, TIMES + 5, TIMES + 6, 2, TIMES + 30], [(0.0, 0.1, 3), (0.12, 0.4, 3)], 40),
        ([TIMES, 1, TIMES, TIMES], [(0.0, 0.0, 3)], 0),
    ],
)  # fmt: skip
def test_pieces_of_a_window(tokens: list[int], pieces: list[tuple[float, float, int]], num_heard: int) -> None:
    found, heard = cut(tokens, TIMES, 40)
    assert [(start, end, len(ids)) for start, end, ids in found] == pieces and heard == num_heard


def looks(ends: list[int], num_rows: int) -> list[GenerationDelta]:
    """What the engine says of an alignment in which each row looks at where its token ends, until the next does."""
    matrix = np.full((len(ends), num_rows), -1, np.float32)
    for row, (start, end) in enumerate(zip(ends, [*ends[1:], num_rows], strict=True)):
        matrix[row, start:end] = 1.0
    return [GenerationDelta([CompletionDelta(0, "", [], None, "stop", None)], 1, 0, 0, True, pooled=matrix.tobytes())]


def test_times_of_words() -> None:
    # Tokens are bytes, and signs belong to words: "a" ends at 2, what stands behind it at 3 and 4, and so on.
    windows = [said(0, "a, b", 8, 8, "(cd)", 12, 12, "e"), looks([0, 2, 3, 4, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17], 20)]
    windows += [said(0, "e", 6), looks([0, 2, 4], 8)]
    pieces, requests, _ = heard(windows, 40, words=True)
    words = [(word.word, round(word.start, 2), round(word.end, 2)) for piece in pieces for word in piece.words or ()]
    assert words == [("a,", 0.0, 0.04), (" b", 0.06, 0.1), ("(cd)", 0.14, 0.22), ("e", 0.24, 0.28)]
    first, aligned = requests[:2]
    assert aligned.params.alignment is not None and aligned.encoder_frames == first.encoder_frames
    assert (aligned.params.alignment.first_token, aligned.params.alignment.num_rows) == (3, 20)
    assert aligned.prompt_token_ids[:3] == [START, ENGLISH, TRANSCRIBE]
    assert aligned.prompt_token_ids[3:] == [
        TIMES, *b"a, b", TIMES + 8, TIMES + 8, *b"(cd)", TIMES + 12, TIMES + 12, *b"e"
    ]  # fmt: skip


def test_a_window_in_which_nothing_is_heard_is_not_heard_for_ever() -> None:
    _, requests, _ = heard([said(0, "a", 0, 0) for _ in range(3)], 3)
    assert len(requests) == 3


def test_subtitles() -> None:
    piece = Piece(3661.5, 3662.04, " a --> b\n\nc", [], 0, 0.0, 0.0, 1.0, 0.0, None)
    assert srt([piece]) == "1\n01:01:01,500 --> 01:01:02,040\na -> b c\n\n"
    assert vtt([piece]) == "WEBVTT\n\n01:01:01.500 --> 01:01:02.040\na -> b c\n\n"


def wav(num_samples: int = 4000) -> bytes:
    """Half a second, at 8 kHz."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((np.sin(np.arange(num_samples)) * 9000).astype("<i2").tobytes())
    return target.getvalue()


def test_an_address_in_a_body_of_json_is_a_sound_too(tmp_path: Path) -> None:
    answers = [said(0, "a", 20), looks([0, 2, 4], 20), said(0, "b", 5), looks([0, 1, 2], 5)]
    script = iter([*answers, *answers])
    server = make_server(lambda request: next(script), info=INFO, speech=VOCABULARY)
    url = f"data:audio/wav;base64,{base64.b64encode(wav()).decode()}"
    body = {"file_url": url, "response_format": "verbose_json", "timestamp_granularities": ["word"], "language": "en"}
    reply = server.post("/v1/audio/transcriptions", body)
    assert reply.status == 200 and reply.json()["text"] == "ab"
    words = [{"word": "a", "start": 0.0, "end": 0.04}, {"word": "b", "start": 0.4, "end": 0.42}]
    assert reply.json()["words"] == words
    assert [segment["words"] for segment in reply.json()["segments"]] == [[words[0]], [words[1]]]
    for fields, param in (
        ({"file": url}, "file_url"),
        ({"file_url": "ftp://x"}, "file_url"),
        ({"file_url": "data:audio/wav;base64,AAAA"}, "file_url"),
        ({"file_url": url, "language": "xx"}, "language"),
    ):
        reply = server.post("/v1/audio/transcriptions", fields)
        assert (reply.status, reply.error["param"]) == (400, param)
    # In a batch, where a text is a string of JSON.
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/audio/transcriptions", "body": body})
    [result] = Batch(tmp_path, line).run(server)
    assert result["response"]["body"]["words"] == words
    script = iter([said(0, "a", 20), said(0, "b", 5)])
    line = line.replace("verbose_json", "vtt").replace('["word"]', "null").replace('"a"', '"b"')
    [_, result] = Batch(tmp_path, line).run(server)
    assert result["response"]["body"].startswith("WEBVTT") and result["error"] is None


def test_a_file_becomes_frames() -> None:
    async def run() -> tuple[Sound, Transcriber]:
        transcriber = Transcriber(VOCABULARY, FakeEngine(), ByteTokenizer(), PlainRenderer(), INFO, ServerConfig())
        try:
            return await transcriber.sounds.of_file(wav(), "file"), transcriber
        finally:
            await transcriber.close()

    sound, transcriber = asyncio.run(run())
    assert (sound.num_frames, sound.seconds) == (50, 0.5) and sound.frames.shape == (90, 4)
    assert transcriber.stats.items["audio"] == 1 and transcriber.stats.num_bytes == len(wav())


def test_a_model_of_text_transcribes_nothing() -> None:
    server = make_server()
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nx\r\n--b--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    for path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
        reply = server.post(path, form, headers)
        assert (reply.status, reply.error["param"]) == (400, "model")
        assert reply.error["message"] == "The model `tiny` does not transcribe sounds; Whisper does."
        assert "multipart/form-data" in server.post(path, {}).error["message"]
        twice = form.removesuffix(b"--b--\r\n") + form
        assert server.post(path, twice, headers).error["param"] == "file"


def test_a_form_may_be_as_large_as_media() -> None:
    server = make_server(max_body_bytes=100, max_media_bytes=400)
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert server.post("/v1/audio/transcriptions", b"x" * 399, headers).status == 400
    reply = server.post("/v1/audio/transcriptions", b"x" * 401, headers)
    assert reply.status == 413 and "400 bytes (see --max-media-bytes)" in reply.error["message"]
