"""Speech through a real server with the real tiny.en, as the official client asks."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from support.server_process import ServerProcess, bound

EXAMPLE = Path(__file__).parents[2] / "examples" / "transcribe.py"
BEGINNING = "The New York Times from July 21st, 1969. This isn't just newsprint and ink."
END = "but rarely has any story matched the cosmic significance of this one."


@pytest.fixture(scope="module")
def server(whisper_hf: Path) -> Iterator[ServerProcess]:
    with ServerProcess(whisper_hf, "--served-model-name", "whisper", "--kv-cache-memory-bytes", "256M") as process:
        yield process.wait_ready(180)


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=bound(120))


def test_what_is_said_and_when(client: OpenAI, speech_clip: Path) -> None:
    reply = client.audio.transcriptions.create(
        model="whisper", file=speech_clip, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert reply.text.startswith(BEGINNING) and reply.text.endswith(END)
    assert (reply.language, reply.duration) == ("english", pytest.approx(17.44))
    segments = reply.segments or []
    assert "".join(segment.text for segment in segments).strip() == reply.text
    assert segments[0].start == 0.0 and segments[-1].end == pytest.approx(17.44)
    assert all(a.start < a.end <= b.start for a, b in itertools.pairwise(segments))
    assert all(segment.no_speech_prob < 0.1 and segment.avg_logprob > -0.5 for segment in segments)
    words = reply.words or []
    assert " ".join(word.word for word in words) == reply.text
    assert words[0].word == "The" and words[0].end == pytest.approx(0.24, abs=0.03)
    # In a stream the same, piece by piece.
    events = list(client.audio.transcriptions.create(model="whisper", file=speech_clip, stream=True))
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == reply.text
    assert events[-1].type == "transcript.text.done" and events[-1].text == reply.text


def test_the_example(server: ServerProcess, speech_clip: Path) -> None:
    command = [sys.executable, str(EXAMPLE), str(speech_clip)]
    env = os.environ | {"OPENAI_BASE_URL": f"{server.url}/v1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=bound(120), check=True)
    assert "July 21st, 1969." in done.stdout and done.stdout.startswith("   0.00")


def test_what_cannot_be_is_refused_by_name(client: OpenAI, speech_clip: Path) -> None:
    for options, param in (
        ({"language": "de"}, "language"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities[]"),
        ({"response_format": "srt", "stream": True}, "response_format"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"temperature": 3.0}, "temperature"),
        ({"file": ("x.wav", b"no sound")}, "file"),
    ):
        with pytest.raises(openai.BadRequestError) as raised:
            client.audio.transcriptions.create(**{"model": "whisper", "file": speech_clip, **options})
        assert raised.value.param == param
    with pytest.raises(openai.BadRequestError, match="English alone"):
        client.audio.translations.create(model="whisper", file=speech_clip)
    with pytest.raises(openai.BadRequestError, match="/v1/audio/transcriptions"):
        client.completions.create(model="whisper", prompt="Hello")
