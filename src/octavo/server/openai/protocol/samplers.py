"""Fields of the samplers that OpenAI's own API has not, under the names that llama.cpp gave them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from octavo.base.repetition import RepetitionDetection
from octavo.served.breakers import MAX_BREAKERS
from octavo.server.openai.protocol.model import Int, WireModel


class SamplerFields(WireModel):
    """`docs/sampling.md` says what each does, and in which order."""

    repeat_last_n: Int | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: Int | None = None
    dry_penalty_last_n: Int | None = None
    dry_sequence_breakers: Annotated[list[str] | None, Field(max_length=MAX_BREAKERS)] = None
    mirostat: Int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None

    def sampler_values(self) -> dict[str, Any]:
        """The values that the body gives, by the names of `SamplingParams`."""
        values = {name: value for name in SamplerFields.model_fields if (value := getattr(self, name)) is not None}
        if self.dry_sequence_breakers is not None:
            values["dry_sequence_breakers"] = tuple(self.dry_sequence_breakers)
        return values


class RepetitionFields(WireModel):
    """When a reply ends because it goes round in circles."""

    model_config = ConfigDict(extra="forbid")

    max_pattern_size: Int = 0
    min_pattern_size: Int = 0
    min_count: Int = 2

    def detection(self) -> RepetitionDetection:
        return RepetitionDetection(**self.model_dump())
