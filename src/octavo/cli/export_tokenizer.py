"""`octavo export-tokenizer MODEL DIRECTORY`: the tokenizer of a model as files for Hugging Face's `AutoTokenizer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.base.config import ModelConfig, check, opt
from octavo.cli.flags import Flag, flags
from octavo.cli.parser import make_parser, read_words

_DESCRIPTION = "Write a model's tokenizer and chat template as files that transformers' AutoTokenizer reads."
_EPILOG = """\
Programs that count tokens or render chats themselves (lm-eval, guidellm) need such a directory for a .gguf model. It
gives the ids that `octavo serve MODEL` gives. No weights are downloaded unless they are in the .gguf file."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The settings of `octavo export-tokenizer`."""

    revision: str | None = opt(None, "Branch, tag or commit of the model on the hub.")
    download_dir: str | None = opt(None, "Where downloads are kept; default: the hub's cache.")
    force: bool = opt(False, "Replace the tokenizer that is in DIRECTORY.")


def table() -> dict[str, Flag]:
    """The command's flags."""
    return flags({"settings": ExportConfig})


def run(argv: Sequence[str]) -> int:
    flag_table = table()
    parser = make_parser("octavo export-tokenizer", "MODEL DIRECTORY [flags]", _DESCRIPTION, _EPILOG, flag_table)
    parser.add_argument("model", metavar="MODEL", help="as for `octavo serve`: a .gguf file, a directory, org/repo")
    parser.add_argument("directory", metavar="DIRECTORY", help="where the files go; made if it is not there")
    values: dict[str, Any] = read_words(parser, argv, flag_table)
    model, directory = values.pop("model"), Path(values.pop("directory"))
    config = ExportConfig(**values)
    check(config)
    # Imported here: `--help` and a wrong flag must not pay for the tokenizer.
    from octavo.files import sources
    from octavo.text.tokenizers.export import read_generation_config, tokenizer_files, write_tokenizer
    from octavo.text.tokenizers.tokenizer import load_tokenizer

    source = sources.resolve_model(
        ModelConfig(
            model=model,
            revision=config.revision,
            download_dir=config.download_dir,
            load_format="dummy",  # of a repository with safetensors, all but the weights
        )
    )
    files = tokenizer_files(load_tokenizer(source), read_generation_config(source))
    write_tokenizer(files, directory, force=config.force)
    print(f"{directory}: {', '.join(files)}")
    return 0
