"""What one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.base.config.options import opt


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What one request may ask for."""

    max_n: int = opt(128, "Maximum n and best_of of a request.", low=1)
    max_prompts: int = opt(1024, "Maximum number of prompts in a request.", low=1)
    max_stop_strings: int = opt(4, "Maximum number of stop strings in a request.", low=0)
    max_logit_bias: int = opt(1024, "Maximum number of entries in a request's logit_bias.", low=0)
    max_logprobs: int = opt(
        20, "Maximum number of log probabilities for each token of a reply; -1: the whole vocabulary.", low=-1
    )
    max_body_bytes: int = opt(16 * 1024 * 1024, "Maximum size of a request's body in bytes.", low=1, unit="bytes")
    max_json_depth: int = opt(64, "Maximum nesting of a request's JSON.", low=1, high=200)
    max_grammar_bytes: int = opt(
        64 << 10, "Maximum size of a request's schema, grammar or list of choices in bytes.", low=1, unit="bytes"
    )
    max_schema_depth: int = opt(64, "Maximum nesting of a request's JSON schema.", low=1, high=200)
    grammar_timeout: float = opt(5.0, "Seconds that the compilation of a request's grammar may take.", above=0.0)
    grammar_cache_bytes: int = opt(
        16 << 20, "Bytes of grammars that are remembered because they compiled.", low=0, unit="bytes"
    )
    strict_requests: bool = opt(False, "Refuse requests with unknown fields instead of ignoring the fields.")
