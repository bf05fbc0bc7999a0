"""Which files of a repository are fetched: those that octavo reads, by how the weights are stored."""

from __future__ import annotations

from typing import Final

from octavo.base.config.engine import LoadFormat

_VOCABULARIES: Final = (
    "tokenizer.model*", "spiece.model", "sentencepiece.bpe.model", "*.tiktoken", "merges.txt", "vocab.txt",
)  # fmt: skip
_DESCRIPTION: Final = ("*.json", "*.jinja", *_VOCABULARIES)
_PICKLES: Final = ("*.bin", "*.pt", "*.pth")
_CONSOLIDATED: Final = ("consolidated*.safetensors", "consolidated*.pth")
_WEIGHTS: Final[dict[LoadFormat, tuple[str, ...]]] = {
    "pt": _PICKLES,
    "npcache": ("np/*", *_PICKLES),
    "sharded_state": ("model-rank-*-part-*.safetensors",),
    "mistral": _CONSOLIDATED,
    "tensorizer": ("*.tensors",),
    "dummy": (),  # random weights need the model's shape and tokenizer only
}
#: A second copy of the weights that some repositories carry, and what is no weights.
_IGNORED: Final = ("original/*", "onnx/*", "*/*.safetensors", "training_args.bin", "optimizer.*", "scheduler.pt")


def weights_of(load_format: LoadFormat) -> tuple[str, ...]:
    return _WEIGHTS.get(load_format, ("*.safetensors",))


def patterns_of(load_format: LoadFormat, with_code: bool = False) -> tuple[str, ...]:
    """`with_code`: also the code beside them, which is run with --trust-remote-code only."""
    return (*_DESCRIPTION, *(["*.py"] if with_code else []), *weights_of(load_format))


def ignored_by(load_format: LoadFormat) -> tuple[str, ...]:
    return _IGNORED if load_format == "mistral" else (*_IGNORED, *_CONSOLIDATED)
