"""Models from ModelScope, web servers and buckets: whole files, and one clear error for what cannot be had."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError
from octavo.files import sources
from octavo.files.s3_signature import Credentials, signed

WEIGHTS = bytes(range(256)) * 64
FILES = {
    "config.json": b'{"a": 1}', "tokenizer.json": b"{}", "a.safetensors": WEIGHTS, "README.md": b"no",
    "model.safetensors.index.json": b'{"weight_map": {"x": "a.safetensors"}}',
}  # fmt: skip


class Server(ThreadingHTTPServer):
    """The same files in three forms: /web/NAME, ModelScope's API for org/repo, the bucket "b" below m/."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(FILES)
        self.cuts = 0  # answers that end in the middle
        self.elsewhere = ""  # the server where the files of ModelScope are
        self.asked: list[str] = []
        self.authorizations: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, has_body: bool) -> None:
        place = urlsplit(self.path)
        path, query = unquote(place.path), {k: v[0] for k, v in parse_qs(place.query).items()}
        files = self.server.files
        self.server.authorizations.add(self.headers.get("Authorization"))
        if path == "/api/v1/models/org/repo/repo/files":
            entries = [{"Path": n, "Size": len(d), "Sha256": sha256(d).hexdigest()} for n, d in files.items()]
            entries.append({"Path": "sub", "Size": 0, "Type": "tree"})
            self._reply(json.dumps({"Data": {"Files": entries if query["Revision"] == "master" else None}}).encode())
        elif path == "/api/v1/models/org/repo/repo" and self.server.elsewhere:
            self.send_response(302)
            self.send_header("Location", f"{self.server.elsewhere}/web/{query['FilePath']}")
            self.end_headers()
        elif path == "/api/v1/models/org/repo/repo":
            self._file(query["FilePath"], has_body)
        elif path == "/b/":
            keys = "".join(f"<Contents><Key>m/{n}</Key><Size>{len(d)}</Size></Contents>" for n, d in files.items())
            namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
            self._reply(f'<ListBucketResult xmlns="{namespace}">{keys}</ListBucketResult>'.encode())
        elif path.startswith(("/web/", "/b/m/")):
            self._file(path.rsplit("/", 1)[1], has_body)
        else:
            self._reply(b"", 404)

    def _file(self, name: str, has_body: bool) -> None:
        data = self.server.files.get(name)
        if data is None:
            return self._reply(b"", 404)
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if has_body:
            self.server.asked.append(f"{name} {begin}")
        if has_body and self.server.cuts and name.endswith(".safetensors"):
            self.server.cuts -= 1
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(data) - begin))
            self.end_headers()
            self.wfile.write(data[begin : begin + 1000])
            return None
        return self._reply(data[begin:], 206 if begin else 200, has_body)

    def _reply(self, data: bytes, status: int = 200, has_body: bool = True) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if has_body:
            self.wfile.write(data)


@contextlib.contextmanager
def running() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
        yield server


def config(kind: str, server: Server, directory: Path, **fields: object) -> ModelConfig:
    models = {"web": f"{server.url}/web", "bucket": "s3://b/m", "modelscope": "org/repo"}
    hub = {"model_hub": "modelscope"} if kind == "modelscope" else {}
    return ModelConfig(model=models[kind], download_dir=str(directory), **hub, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["web", "bucket", "modelscope"])
def test_the_files_that_octavo_reads_are_fetched_once(kind: str, server: Server, tmp_path: Path) -> None:
    settings = config(kind, server, tmp_path)
    found = sources.resolve_model(settings)
    assert {p.name: p.read_bytes() for p in found.iterdir()} == {n: d for n, d in FILES.items() if n != "README.md"}
    server.asked.clear()
    assert sources.resolve_model(settings) == found
    assert all(not asked.startswith("a.safetensors") for asked in server.asked)


@pytest.mark.parametrize("kind", ["web", "bucket", "modelscope"])
def test_a_file_that_was_cut_off_goes_on_where_it_ended(kind: str, server: Server, tmp_path: Path) -> None:
    server.cuts = 2
    found = sources.resolve_model(config(kind, server, tmp_path))
    assert (found / "a.safetensors").read_bytes() == WEIGHTS
    asked = [line for line in server.asked if line.startswith("a.safetensors")]
    assert asked == ["a.safetensors 0", "a.safetensors 1000", "a.safetensors 2000"]
    server.cuts = 99
    with pytest.raises(CheckpointError, match=r"a\.safetensors was cut off"):
        sources.resolve_model(config(kind, server, tmp_path / "again"))
    assert not list((tmp_path / "again").rglob("a.safetensors"))


@pytest.mark.parametrize("kind", ["bucket", "modelscope"])
def test_pickles_are_fetched_where_there_is_nothing_better(kind: str, server: Server, tmp_path: Path) -> None:
    for name in ("a.safetensors", "model.safetensors.index.json"):
        del server.files[name]
    server.files["pytorch_model.bin"] = b"weights"
    found = sources.resolve_model(config(kind, server, tmp_path))
    assert (found / "pytorch_model.bin").read_bytes() == b"weights"
    assert not (
        sources.resolve_model(config(kind, server, tmp_path / "d", load_format="dummy")) / "pytorch_model.bin"
    ).exists()


def test_one_gguf_file_of_a_web_server(server: Server, tmp_path: Path) -> None:
    server.files["m.gguf"] = b"GGUF"
    model = ModelConfig(model=f"{server.url}/web/m.gguf", download_dir=str(tmp_path))
    assert sources.resolve_model(model).read_bytes() == b"GGUF"


def test_what_cannot_be_had_is_one_error(server: Server, tmp_path: Path) -> None:
    settings = config("modelscope", server, tmp_path)
    server.files["../evil.json"] = b"{}"
    with pytest.raises(CheckpointError, match="not the path of a file in it"):
        sources.resolve_model(settings)
    del server.files["../evil.json"]
    with pytest.raises(CheckpointError, match="no list of files"):
        sources.resolve_model(config("modelscope", server, tmp_path, revision="v2"))
    for model in (f"{server.url}/nothing", "s3://other/m", "gs://b/m"):
        with pytest.raises(CheckpointError, match="could not be fetched|octavo fetches from"):
            sources.resolve_model(ModelConfig(model=model, download_dir=str(tmp_path)))
    with pytest.raises(CheckpointError, match="has no revisions"):
        sources.resolve_model(ModelConfig(model="s3://b/m", revision="x"))


def test_requests_are_signed_when_there_is_a_key(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    sources.resolve_model(config("bucket", server, tmp_path))
    assert server.authorizations and all(
        line is not None and line.startswith("AWS4-HMAC-SHA256 Credential=id/") for line in server.authorizations
    )
    assert "secret" not in str(server.authorizations)


def test_what_opens_one_host_is_not_sent_to_another(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "token")
    with running() as other:
        server.elsewhere = other.url
        found = sources.resolve_model(config("modelscope", server, tmp_path))
    assert (found / "a.safetensors").read_bytes() == WEIGHTS
    assert server.authorizations == {"Bearer token"} and other.authorizations == {None}


def test_a_user_and_password_in_an_address_are_sent_and_not_shown(server: Server, tmp_path: Path) -> None:
    address = server.url.replace("//", "//me:my%40key@")
    settings = config("web", server, tmp_path)
    found = sources.resolve_model(dataclasses.replace(settings, model=f"{address}/web"))
    assert (found / "config.json").is_file()
    assert server.authorizations == {"Basic bWU6bXlAa2V5"}
    with pytest.raises(CheckpointError) as caught:
        sources.resolve_model(dataclasses.replace(settings, model=f"{address}/nothing"))
    assert "key" not in caught.value.message


def test_the_signature_is_that_of_the_published_example() -> None:
    # "GET Object" of Amazon's documentation of Signature Version 4.
    key = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    url, now = "https://examplebucket.s3.amazonaws.com/test.txt", datetime(2013, 5, 24, tzinfo=UTC)
    headers = signed(url, {}, {"Range": "bytes=0-9"}, key, "us-east-1", now)
    assert headers["Authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )
    temporary = Credentials(key.key_id, key.secret, "token")
    assert signed(url, {"a": "b"}, {}, temporary, "us-east-1", now)["x-amz-security-token"] == "token"
