"""The settings of adapters: what the engine makes room for, and which the server has from the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octavo.base.config.options import opt
from octavo.base.errors import InvalidConfig


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters of low rank (LoRA)."""

    enable_lora: bool = opt(False, "Serve LoRA adapters beside the model: docs/lora.md.")
    max_loras: int = opt(1, "Most adapters that the requests of one step may have between them.", low=1, high=1024)
    max_lora_rank: int = opt(
        16, "Highest rank of an adapter: 8, 16, 32, 64, 128 or 256.", choices=(8, 16, 32, 64, 128, 256)
    )
    lora_extra_vocab_size: int = opt(
        0,
        "Most tokens that an adapter adds to the model's: 0, 256 or 512. Logits have so many more columns.",
        choices=(0, 256, 512),
    )
    lora_dtype: Literal["auto", "float16", "bfloat16", "float32"] = opt(
        "auto", "Data type of adapters; auto: as they are stored, on a GPU that of the activations."
    )
    long_lora_scaling_factors: list[float] = opt(
        list,
        "Factors, above 1, by which adapters may lengthen the model's context; each takes a table of positions. An "
        "adapter's own follows from `context_length` in its configuration.",
        above=1.0,
    )
    lora_target_modules: list[str] = opt(
        list,
        "Modules that adapters may change, by the ends of their names, such as q_proj; adapters of others are refused. "
        "Default: all that octavo can.",
    )
    max_cpu_loras: int | None = opt(
        None,
        "Most adapters that the host's memory keeps; others are read from their files again when they are asked for. "
        "Default: --max-loras.",
        low=1,
    )

    @property
    def num_kept(self) -> int:
        """Adapters in the host's memory, at most."""
        return self.max_loras if self.max_cpu_loras is None else self.max_cpu_loras


@dataclass(frozen=True, kw_only=True)
class PromptAdapterConfig:
    """Adapters that put rows of their own in front of prompts."""

    enable_prompt_adapter: bool = opt(False, "Serve prompt adapters beside the model: docs/lora.md.")
    max_prompt_adapters: int = opt(
        1,
        "Most prompt adapters that the requests of one step may have between them, and that are kept in memory.",
        low=1, high=1024,
    )  # fmt: skip
    max_prompt_adapter_token: int = opt(
        0, "Most virtual tokens of a prompt adapter; --enable-prompt-adapter needs it.", low=0
    )

    def check(self) -> None:
        """Raises `InvalidConfig`."""
        if self.enable_prompt_adapter and not self.max_prompt_adapter_token:
            raise InvalidConfig(
                "--enable-prompt-adapter needs --max-prompt-adapter-token, the most virtual tokens that an adapter "
                "may have"
            )


@dataclass(frozen=True, kw_only=True)
class AdaptersConfig:
    """Which adapters the server has, and from where it may get more."""

    lora_modules: list[str] = opt(
        list,
        "Adapters that are served as models from the start: name=path, or a JSON object with name, path and "
        "base_model_name. A path is a directory, a .gguf file or a hub id.",
    )
    prompt_adapters: list[str] = opt(
        list, "Prompt adapters that are served as models from the start: name=path. A path is a directory or a hub id."
    )
    lora_resolver_dir: str | None = opt(
        None, "Directory whose folders and .gguf files are adapters: one is loaded when a request names it."
    )
    allow_runtime_lora_updating: bool = opt(
        False,
        "Let everyone who may send requests load and unload adapters by /v1/load_lora_adapter, not administrators "
        "alone.",
    )
