"""Models that lie elsewhere than on the Hugging Face hub: ModelScope, web servers, buckets of S3's kind.

    ModelScope          a repository, by its API
    https://host/dir    a directory: the files that a model has, by name, and those that its index lists
    s3://bucket/prefix  a bucket, at $AWS_ENDPOINT_URL or Amazon's; signed when $AWS_ACCESS_KEY_ID is set

Files are kept on disk, each under its name once it is whole; one that was cut off goes on from where it ended. All
errors are `CheckpointError`.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode, urlsplit

from octavo.base.errors import CheckpointError
from octavo.files.s3_signature import Credentials, signed

_CHUNK: Final = 1 << 20
_SECONDS: Final = 60.0
_MAX_LISTING: Final = 64 << 20
_NUM_AT_ONCE: Final = 4
_ATTEMPTS: Final = 5
#: What a directory of a web server may hold; such servers have no listing that all understand.
_CANDIDATES: Final = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "chat_template.json", "tokenizer.model", "tekken.json", "params.json", "vocab.json",
    "merges.txt", "added_tokens.json", "model.safetensors", "model.safetensors.index.json", "consolidated.safetensors",
    "pytorch_model.bin", "pytorch_model.bin.index.json", "quantize_config.json", "quant_config.json",
    "hf_quant_config.json", "quanto_qmap.json", "model.tensors",
)  # fmt: skip


class _Redirects(urllib.request.HTTPRedirectHandler):
    """What opens one host is not told another, such as the one that a hub's files are fetched from."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None and (made.type, made.host) != (req.type, req.host):
            for name in ("Authorization", "X-amz-security-token"):
                made.remove_header(name)
        return made


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)


@dataclass(frozen=True)
class RemoteFile:
    path: str
    size: int | None = None
    sha256: str | None = None


class Store:
    """One model. A kind says which files there are, and where each is fetched from."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._directory = directory
        self._files: list[RemoteFile] | None = None

    def _list(self) -> list[RemoteFile]:
        raise NotImplementedError

    def _request(self, path: str, headers: Mapping[str, str]) -> urllib.request.Request:
        raise NotImplementedError

    def list_files(self) -> list[str]:
        return [file.path for file in self._listed()]

    def file(self, path: str) -> Path:
        """The local path of one file, fetched when it is not there."""
        found = next((file for file in self._listed() if file.path == path), None)
        if found is None:
            raise CheckpointError(f"model {self.name}: there is no file {path}")
        return self._fetched(found)

    def snapshot(self, patterns: Sequence[str], ignored: Sequence[str] = ()) -> Path:
        """The directory with all files that `patterns` name and `ignored` do not."""
        wanted = [
            file
            for file in self._listed()
            if any(fnmatch(file.path, p) for p in patterns) and not any(fnmatch(file.path, p) for p in ignored)
        ]
        with ThreadPoolExecutor(_NUM_AT_ONCE) as pool:
            list(pool.map(self._fetched, wanted))
        self._directory.mkdir(parents=True, exist_ok=True)
        return self._directory

    def _listed(self) -> list[RemoteFile]:
        if self._files is None:
            files = self._list()
            for file in files:
                if not file.path or Path(file.path).is_absolute() or ".." in Path(file.path).parts:
                    raise CheckpointError(f"model {self.name}: {file.path[:100]!r} is not the path of a file in it")
            self._files = files
        return self._files

    def _fetched(self, file: RemoteFile) -> Path:
        target = self._directory / file.path
        if target.is_file() and file.size in (None, target.stat().st_size):
            return target
        partial = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for attempt in range(_ATTEMPTS):
                with contextlib.suppress(ConnectionError, TimeoutError, HTTPException):
                    self._continue(file, partial)
                    break
                if attempt == _ATTEMPTS - 1:
                    raise CheckpointError(f"model {self.name}: {file.path} was cut off {_ATTEMPTS} times")
            if file.sha256 is not None and _sha256(partial) != file.sha256:
                partial.unlink()
                raise CheckpointError(f"model {self.name}: {file.path} is not what was announced: its SHA-256 differs")
            os.replace(partial, target)
        except urllib.error.HTTPError as error:
            raise self._failure(f"{file.path}: the server answers {error.code}") from None
        except OSError as error:
            raise self._failure(f"{file.path}: {getattr(error, 'reason', None) or error.strerror or error}") from None
        return target

    def _continue(self, file: RemoteFile, partial: Path) -> None:
        """Fetch what is missing of a file."""
        begin = partial.stat().st_size if partial.is_file() else 0
        if begin and file.size == begin:
            return
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        with contextlib.ExitStack() as stack:
            reply = stack.enter_context(_opener().open(self._request(file.path, headers), timeout=_SECONDS))
            continues = reply.status == 206  # a server that knows no ranges sends the whole file
            out = stack.enter_context(partial.open("ab" if continues else "wb"))
            while chunk := reply.read(_CHUNK):
                out.write(chunk)
        size = file.size if file.size is not None else _announced(reply.headers, begin if continues else 0)
        if size is not None and partial.stat().st_size < size:
            raise ConnectionError("cut off")
        if size is not None and partial.stat().st_size > size:
            partial.unlink()
            raise CheckpointError(f"model {self.name}: {file.path} is larger than the {size} bytes announced")

    def _read(self, request: urllib.request.Request) -> bytes:
        """A listing or another small file."""
        try:
            with _opener().open(request, timeout=_SECONDS) as reply:
                data: bytes = reply.read(_MAX_LISTING + 1)
        except urllib.error.HTTPError as error:
            raise self._failure(f"the server answers {error.code}") from None
        except (OSError, HTTPException) as error:
            raise self._failure(str(getattr(error, "reason", None) or error)) from None
        if len(data) > _MAX_LISTING:
            raise self._failure("the list of its files has no end")
        return data

    def _failure(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"model {self.name} could not be fetched: {why}. Check the name, the network and what access it needs, or "
            "give the path of a directory that is already here."
        )


class ModelScope(Store):
    """A repository of ModelScope, at $MODELSCOPE_ENDPOINT or its own; $MODELSCOPE_API_TOKEN opens private ones."""

    def __init__(self, name: str, repo: str, revision: str | None, directory: Path) -> None:
        self._revision = revision or "master"
        super().__init__(name, directory / "modelscope" / repo / quote(self._revision, safe=""))
        endpoint = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
        endpoint = endpoint if "://" in endpoint else f"https://{endpoint}"
        self._base = f"{endpoint.rstrip('/')}/api/v1/models/{quote(repo)}/repo"
        token = os.environ.get("MODELSCOPE_API_TOKEN")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def _list(self) -> list[RemoteFile]:
        query = urlencode({"Revision": self._revision, "Recursive": "True"})
        data = self._read(urllib.request.Request(f"{self._base}/files?{query}", headers=self._headers))
        try:
            listed: list[Mapping[str, Any]] = json.loads(data)["Data"]["Files"]
            return [
                RemoteFile(str(f["Path"]), int(f["Size"]), f.get("Sha256") or None)
                for f in listed
                if f.get("Type") != "tree"
            ]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._failure("what ModelScope says of it is no list of files") from None

    def _request(self, path: str, headers: Mapping[str, str]) -> urllib.request.Request:
        query = urlencode({"Revision": self._revision, "FilePath": path})
        return urllib.request.Request(f"{self._base}?{query}", headers={**self._headers, **headers})


class WebDirectory(Store):
    """A directory of a web server; a user and a password in the address are sent, and never shown."""

    def __init__(self, url: str, directory: Path) -> None:
        place = urlsplit(url)
        shown = place._replace(netloc=place.netloc.rpartition("@")[2]).geturl()
        super().__init__(shown, directory / "web" / hashlib.sha256(url.encode()).hexdigest()[:16])
        self._url = shown.rstrip("/")
        who = f"{unquote(place.username or '')}:{unquote(place.password or '')}"
        key = f"Basic {base64.b64encode(who.encode()).decode()}"
        self._headers = {"Authorization": key} if place.username is not None else {}

    def _list(self) -> list[RemoteFile]:
        found = [file for name in _CANDIDATES if (file := self._probed(name)) is not None]
        for index in [file.path for file in found if file.path.endswith(".index.json")]:
            try:
                placed = json.loads(self._read(self._request(index, {})))["weight_map"]
                names = sorted({str(name) for name in placed.values()})
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise self._failure(f"{index} is no index of weights") from None
            found += [file for name in names if (file := self._probed(name)) is not None]
        if not found:
            raise self._failure("it has no config.json and none of the other files of a model")
        return found

    def file(self, path: str) -> Path:
        """By its name alone: any file can be asked for."""
        found = self._probed(path)
        if found is None:
            raise self._failure(f"there is no file {path}")
        return self._fetched(found)

    def _probed(self, name: str) -> RemoteFile | None:
        request = self._request(name, {})
        request.method = "HEAD"
        try:
            with _opener().open(request, timeout=_SECONDS) as reply:
                return RemoteFile(name, _announced(reply.headers, 0))
        except urllib.error.HTTPError as error:
            if error.code in (403, 404, 410):
                return None
            raise self._failure(f"{name}: the server answers {error.code}") from None
        except (OSError, HTTPException) as error:
            raise self._failure(str(getattr(error, "reason", None) or error)) from None

    def _request(self, path: str, headers: Mapping[str, str]) -> urllib.request.Request:
        return urllib.request.Request(f"{self._url}/{quote(path)}", headers={**self._headers, **headers})


class Bucket(Store):
    """The files below a prefix of a bucket."""

    def __init__(self, url: str, directory: Path) -> None:
        place = urlsplit(url)
        super().__init__(url, directory / "s3" / hashlib.sha256(url.encode()).hexdigest()[:16])
        self._bucket, self._prefix = place.netloc, place.path.strip("/")
        self._region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        default = f"https://s3.{self._region}.amazonaws.com"
        self._endpoint = (
            os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or default
        ).rstrip("/")
        self._credentials = Credentials.from_environment(os.environ)

    def _list(self) -> list[RemoteFile]:
        found: list[RemoteFile] = []
        token: str | None = None
        below = f"{self._prefix}/" if self._prefix else ""
        while True:
            query = {"list-type": "2", "prefix": below} | ({"continuation-token": token} if token else {})
            data = self._read(self._signed("", query, {}))
            try:
                page = ElementTree.fromstring(data)
            except ElementTree.ParseError:
                raise self._failure("what the server says of it is no list of files") from None
            for entry in page.iterfind("{*}Contents"):
                key, size = entry.findtext("{*}Key") or "", entry.findtext("{*}Size") or ""
                if key.startswith(below) and not key.endswith("/") and size.isdigit():
                    found.append(RemoteFile(key.removeprefix(below), int(size)))
            token = page.findtext("{*}NextContinuationToken")
            if not token or len(found) > 100_000:
                break
        if not found:
            raise self._failure("there are no files below it")
        return found

    def _request(self, path: str, headers: Mapping[str, str]) -> urllib.request.Request:
        return self._signed(f"{self._prefix}/{path}" if self._prefix else path, {}, headers)

    def _signed(self, key: str, query: Mapping[str, str], headers: Mapping[str, str]) -> urllib.request.Request:
        url = f"{self._endpoint}/{quote(self._bucket)}/{quote(key)}"
        all_headers = signed(url, query, headers, self._credentials, self._region)
        return urllib.request.Request(
            f"{url}?{urlencode(query, quote_via=quote)}" if query else url, headers=all_headers
        )


def store_of(url: str, directory: Path) -> Store | None:
    """The store of a model that is named by its URL; None for another name."""
    scheme = urlsplit(url).scheme if "://" in url else ""
    if scheme in ("http", "https"):
        return WebDirectory(url, directory)
    return Bucket(url, directory) if scheme == "s3" else None


def _announced(headers: Any, begin: int) -> int | None:
    length = headers.get("Content-Length")
    return begin + int(length) if length is not None and length.isdigit() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
