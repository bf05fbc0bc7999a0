"""`SamplingParams.validate`: every field against its range, numbers that are none, ids against the logits' width."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from octavo.base.errors import InvalidRequest
from octavo.base.params import BeamParams, SamplingParams
from octavo.base.ranges import RANGES
from octavo.base.repetition import RepetitionDetection

VOCAB = 1000


def validated(**fields: Any) -> SamplingParams:
    return SamplingParams(**fields).validate(vocab_size=VOCAB)


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        validated(**fields)
    assert len(caught.value.message) < 200
    return caught.value


@pytest.mark.parametrize("name", RANGES)
def test_each_end_of_a_range_is_inside_and_the_next_value_is_not(name: str) -> None:
    low, high = RANGES[name]
    step = 1 if isinstance(getattr(SamplingParams(), name), int | None) else 1e-9
    others = {"min_tokens": {"max_tokens": None}, "best_of": {"n": 1}}.get(name, {})
    if low is not None:
        validated(**{name: low}, **others)
        assert refused(**{name: low - step}, **others).param == name
    if high is not None:
        validated(**{name: high}, **others)
        assert refused(**{name: high + step}, **others).param == name


NUMBERS = ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"]


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf, float("1e999")], ids=str)
@pytest.mark.parametrize("name", NUMBERS)
def test_no_comparison_lets_a_number_pass_that_is_none(name: str, value: float) -> None:
    assert refused(**{name: value}).param == name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nor_a_bias_or_a_length_penalty(value: float) -> None:
    assert refused(logit_bias={1: value}).param == "logit_bias"
    with pytest.raises(InvalidRequest, match="length_penalty"):
        BeamParams(width=2, length_penalty=value).check(SamplingParams(temperature=0.0))


@pytest.mark.parametrize(
    "token_id", [-1, VOCAB, VOCAB + 1, -VOCAB, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**64, -(2**63)]
)
def test_ids_are_checked_against_the_width_of_the_logits(token_id: int) -> None:
    """S12, S13, S27: also those that wrap around to an id inside it when they are cut to 32 bits."""
    assert refused(logit_bias={token_id: 1.0}).param == "logit_bias"
    assert refused(stop_token_ids=(0, token_id)).param == "stop_token_ids"
    assert refused(allowed_token_ids=(token_id,)).param == "allowed_token_ids"
    assert refused(bad_word_token_ids=((0, token_id),)).param == "bad_words"


def test_s1_a_temperature_near_zero_is_greedy_and_a_small_one_is_raised() -> None:
    for temperature in (0.0, 9e-6, 1e-320, -0.0):
        params = validated(temperature=temperature, top_p=0.5, top_k=3, min_p=0.2)
        assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.0, 1.0, 0, 0.0)
        assert params.greedy
    assert validated(temperature=1e-5).temperature == 0.01
    assert validated(temperature=0.0099).temperature == 0.01
    assert validated(temperature=0.011).temperature == 0.011


@pytest.mark.parametrize("top_p", [0.0, -0.0, 5e-324, 1e-45, 1e-6])
def test_s2_a_top_p_near_zero_leaves_the_most_likely_token(top_p: float) -> None:
    assert validated(top_p=top_p).top_p == 1e-6


@pytest.mark.parametrize("value", [1e-320, 5e-324, 1e-45, 1e-38, 0.0, 1e-7, 1e7, 1e38, 1e308, 10**400])
def test_s7_a_repetition_penalty_without_room_in_float32_is_refused(value: float) -> None:
    assert refused(repetition_penalty=value).param == "repetition_penalty"


@pytest.mark.parametrize("top_k", [-1, 0, VOCAB, VOCAB + 1, 2**63, 10**400])
def test_s3_top_k_of_all_tokens_is_none(top_k: int) -> None:
    """Whatever its size: it has to cross to the engine in 64 bits."""
    params = validated(top_k=top_k)
    assert params.top_k == 0
    msgspec.msgpack.encode(params)


def test_s8_s12_normal_forms() -> None:
    assert validated(seed=-1).seed is None
    assert validated(seed=0).seed == 0
    assert validated(logit_bias={1: 500.0, 2: -1e308, 3: 1.5}).logit_bias == {1: 100.0, 2: -100.0, 3: 1.5}


def test_s17_s18_bounds_that_depend_on_other_fields() -> None:
    assert refused(min_tokens=6, max_tokens=5).param == "min_tokens"
    assert refused(logprobs=21).message == "Cannot request more than 20 logprobs."
    assert refused(logprobs=-1).param == "logprobs"
    everything = SamplingParams(logprobs=-1, prompt_logprobs=-1).validate(vocab_size=VOCAB, max_logprobs=-1)
    assert (everything.logprobs, everything.prompt_logprobs) == (VOCAB, VOCAB)
    assert refused(n=2, best_of=1).param == "best_of"


def test_valid_parameters_are_their_own_normal_form() -> None:
    params = validated(temperature=0.0, top_k=5, seed=-1, logit_bias={1: 200.0})
    assert params.validate(vocab_size=VOCAB) == params


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"dry_allowed_length": 0}, "dry_allowed_length"),
        ({"dry_base": 0.5}, "dry_base"),
        ({"mirostat": 3}, "mirostat"),
        ({"xtc_probability": 1.5}, "xtc_probability"),
        ({"top_n_sigma": math.nan}, "top_n_sigma"),
        ({"repeat_last_n": 2**31}, "repeat_last_n"),
        ({"logprob_token_ids": (1,)}, "logprob_token_ids"),
        ({"logprobs": 0, "logprob_token_ids": (300,)}, "logprob_token_ids"),
        ({"logprobs": 0, "logprob_token_ids": (1,) * 129}, "logprob_token_ids"),
        (
            {"repetition_detection": RepetitionDetection(max_pattern_size=5, min_count=1)},
            "repetition_detection.min_count",
        ),
        (
            {"repetition_detection": RepetitionDetection(max_pattern_size=5, min_pattern_size=6)},
            "repetition_detection.min_pattern_size",
        ),
    ],
)
def test_samplers_beyond_their_ranges_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**fields).validate(vocab_size=300)
    assert caught.value.param == param


def test_a_greedy_request_is_not_shaped_but_by_what_changes_its_logits() -> None:
    filters = {"typical_p": 0.5, "mirostat": 2, "xtc_probability": 0.5, "top_n_sigma": 1.0, "dynatemp_range": 0.5}
    assert not SamplingParams(temperature=0.0, **filters).validate(vocab_size=9).shapes_rows
    assert SamplingParams(temperature=0.0, dry_multiplier=1.0).validate(vocab_size=9).shapes_rows
    assert SamplingParams(temperature=1.0, typical_p=0.5).validate(vocab_size=9).shapes_rows
    assert not SamplingParams(repeat_last_n=5).validate(vocab_size=9).shapes_rows
    off = SamplingParams(repetition_detection=RepetitionDetection(min_count=10**30)).validate(vocab_size=9)
    assert off.repetition_detection is None
