"""`octavo.LLM` with the fake model's engine: what the output must be, and the model's own defaults of sampling."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo import LLM, BeamParams, GuidedDecodingParams, SamplingParams, StructuredOutputsParams
from octavo.base.errors import InvalidRequest, RequestError, ServerError
from octavo.launch import engine_process
from octavo.served.checks import checked_params
from octavo.served.turn import Continuation, Turn
from octavo.text.grammars.checker import GrammarChecker
from octavo.text.grammars.grammar import GrammarLimits, spec_of
from support.client_fakes import TOKENIZER

TESTS = Path(__file__).parent.parent
FILE = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1, "max_new_tokens": 7}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TAG = {"structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}], "triggers": ["<f"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    TOKENIZER._backend.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text("{}")
    (directory / "generation_config.json").write_text(json.dumps(FILE | {"do_sample": True}))
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "chat_template": template}))
    return directory


@pytest.fixture(autouse=True, scope="module")
def fake_engine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_process, "ENGINE_COMMAND", (sys.executable, str(TESTS / "support" / "fake_engine.py")))
        yield


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(str(model), max_num_seqs=4, max_grammar_bytes=1000) as llm:
        yield llm


def checked(llm: LLM, params: SamplingParams) -> SamplingParams:
    """What a call with these parameters asks of the engine."""
    turn = Turn(request_id="one", prompts=[Continuation(prompt="a")], sampling=llm._settled(params, None))
    return checked_params(llm._model, turn)


def wants(**fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=5, seed=1, structured_outputs=StructuredOutputsParams(**fields))


# ---------------------------------------------------------------- structured outputs
KINDS: list[dict[str, Any]] = [
    {"json": SCHEMA},
    {"json": json.dumps(SCHEMA)},
    {"json": SCHEMA, "whitespace_pattern": "[ ]?"},
    {"json": SCHEMA, "disable_any_whitespace": True},
    {"json": {"type": "object"}, "disable_additional_properties": True},
    {"regex": "[a-c]{3}"},
    {"choice": ["red", "green"]},
    {"grammar": 'root ::= "a" | "b"'},
    {"json_object": True},
    {"structural_tag": TAG},
    {"structural_tag": json.dumps(TAG)},
]


async def served(fields: dict[str, Any]) -> str:
    """What the server makes of a request's `structured_outputs`."""
    spec = spec_of({"structured_outputs": fields}, GrammarLimits())
    assert spec is not None
    checker = GrammarChecker()
    try:
        return await checker.check(spec)
    finally:
        await checker.close()


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_g20_a_program_gets_the_grammar_that_the_server_makes(llm: LLM, fields: dict[str, Any]) -> None:
    made = checked(llm, wants(**fields))
    assert made.grammar == asyncio.run(served(fields))
    assert made.structured_outputs is None and made.guided_decoding is None


@pytest.mark.parametrize("kind", ["json", "regex", "choice", "grammar", "json_object"])
def test_g1_to_g7_the_older_name_means_the_same(llm: LLM, kind: str) -> None:
    value = next(fields[kind] for fields in KINDS if kind in fields)
    older = GuidedDecodingParams(**{kind: value}, backend="outlines")
    made = checked(llm, SamplingParams(guided_decoding=older))
    assert made.grammar == checked(llm, wants(**{kind: value})).grammar


def test_g11_the_engine_is_given_the_grammar_and_keeps_to_it(llm: LLM) -> None:
    """The fake model chooses bytes below 50, whatever the masks say: so the engine must end what breaks its promise."""
    free = llm.generate("abc", SamplingParams(max_tokens=5, seed=1), use_tqdm=False)[0].outputs
    assert llm.generate("abc", wants(regex=r"[\s\S]*"), use_tqdm=False)[0].outputs == free
    with pytest.raises(ServerError):
        llm.generate("abc", wants(regex="a{40}"), use_tqdm=False)
    conversation = [{"role": "user", "content": "Hi"}]
    assert llm.chat(conversation, wants(regex=r"[\s\S]*"), use_tqdm=False)[0].outputs[0].finish_reason == "length"


REFUSED: list[tuple[Any, str]] = [
    (wants(), "structured_outputs"),
    (wants(json={}, regex="a"), "structured_outputs"),
    (wants(json={"if": {}}), "structured_outputs.json.if"),
    (wants(json="{"), "structured_outputs.json"),
    (wants(json={"type": "banana"}), "structured_outputs.json.type"),
    (wants(json={"minimum": float("nan")}), "structured_outputs"),
    (wants(json={"const": {1, 2}}), "structured_outputs"),
    (wants(json={"enum": ["x" * 1000]}), "structured_outputs.json"),
    (wants(regex="(?=a)"), "structured_outputs.regex"),
    (wants(regex=5), "structured_outputs.regex"),
    (wants(regex="a{1000000000}{1000000000}"), "structured_outputs.regex"),
    (wants(choice=[]), "structured_outputs.choice"),
    (wants(grammar="start: missing"), "structured_outputs.grammar"),
    (wants(structural_tag={"structures": []}), "structured_outputs.structural_tag"),
    (wants(json={}, whitespace_pattern="x"), "structured_outputs.whitespace_pattern"),
    (SamplingParams(guided_decoding=GuidedDecodingParams(json={"if": {}})), "guided_decoding.json.if"),
    (SamplingParams(guided_decoding=GuidedDecodingParams(regex="a", backend="banana")), "guided_decoding.backend"),
    (
        SamplingParams(
            guided_decoding=GuidedDecodingParams(regex="a"), structured_outputs=StructuredOutputsParams(regex="a")
        ),
        "guided_decoding",
    ),
    (SamplingParams(structured_outputs={"regex": "a", "jason": {}}), "structured_outputs"),  # type: ignore[arg-type]
    (SamplingParams(structured_outputs=5), "structured_outputs"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: f"{row[1]} {row[0]}"[:80])
def test_g10_what_cannot_be_enforced_is_named_before_anything_is_started(llm: LLM, row: Any) -> None:
    given, param = row
    with pytest.raises(InvalidRequest) as caught:
        llm.generate(["a", "b"], [SamplingParams(), given], use_tqdm=False)
    assert caught.value.param == param
    assert llm._model.engine.num_unfinished == 0


def test_s21_a_constraint_does_not_go_with_beams(llm: LLM) -> None:
    given = SamplingParams(temperature=0.0, structured_outputs=StructuredOutputsParams(regex="a"))
    with pytest.raises(InvalidRequest, match="use_beam_search") as caught:
        llm.generate("a", given, beams=BeamParams(width=2), use_tqdm=False)
    assert caught.value.param == "structured_outputs"


def test_one_check_serves_all_prompts_that_share_their_parameters(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    check = llm._model.grammars.check

    async def counted(spec: Any) -> str:
        seen.append(spec)
        return await check(spec)

    monkeypatch.setattr(llm._model.grammars, "check", counted)
    llm.generate([f"prompt {i}" for i in range(20)], wants(regex=r"[\s\S]*"), use_tqdm=False)
    assert len(seen) == 1


def test_the_process_that_compiles_grammars_ends_with_close(model: Path) -> None:
    before = set(psutil.Process().children())
    with LLM(str(model)) as llm:
        assert len(set(psutil.Process().children()) - before) == 1  # the engine; the other is started when needed
        llm.generate("a", wants(regex=r"[\s\S]*"), use_tqdm=False)
        assert len(set(psutil.Process().children()) - before) == 2
    assert set(psutil.Process().children()) == before


def test_a_script_that_closes_nothing_leaves_no_process_that_compiles(model: Path) -> None:
    script = (
        "import sys; from octavo.launch import engine_process\n"
        "from octavo import LLM, SamplingParams, StructuredOutputsParams\n"
        f"engine_process.ENGINE_COMMAND = (sys.executable, {str(TESTS / 'support' / 'fake_engine.py')!r})\n"
        f"llm = LLM({str(model)!r})\n"
        "wants = StructuredOutputsParams(regex=r'[\\s\\S]*')\n"
        "llm.generate('abc', SamplingParams(max_tokens=3, structured_outputs=wants), use_tqdm=False)\n"
        "print(llm._model.grammars._helper.pid)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert not psutil.pid_exists(int(run.stdout))


# ---------------------------------------------------------------- anything at all
SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2, 299, 300, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400])
    | st.floats()
    | st.sampled_from(["", "a", "never", "\ud800", "\x00", b"a", object(), 1j])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [name for name in SamplingParams.__struct_fields__ if name != "grammar"]


@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=4))
def test_parameters_of_any_kind_are_refused_by_name_or_can_cross_to_the_engine(
    llm: LLM, fields: dict[str, Any]
) -> None:
    try:
        params = checked(llm, SamplingParams(**fields))
    except InvalidRequest as exc:
        assert exc.param and exc.message and len(exc.message) < 5000
    else:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


# ---------------------------------------------------------------- defaults of the model
def test_the_models_defaults_are_told_and_are_those_of_a_call_without_parameters(llm: LLM) -> None:
    expected = SamplingParams(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.1, max_tokens=7)
    assert llm.get_default_sampling_params() == expected
    (result,) = llm.generate("abc", use_tqdm=False)
    assert len(result.outputs[0].token_ids) == 7
    (result,) = llm.chat([{"role": "user", "content": "Hi"}], use_tqdm=False)
    assert len(result.outputs[0].token_ids) == 7


def test_a_default_length_never_makes_a_request_too_long(llm: LLM) -> None:
    room = llm.info.max_model_len - 3
    (result,) = llm.generate("x" * room, use_tqdm=False)
    assert (len(result.outputs[0].token_ids), result.outputs[0].finish_reason) == (3, "length")


def test_s21_the_models_defaults_are_set_aside_for_beams(llm: LLM) -> None:
    (result,) = llm.generate("abc", beams=BeamParams(width=2), use_tqdm=False)
    assert len(result.outputs[0].token_ids) == 7


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"generation_config": "vllm"}, SamplingParams()),
        (
            {"generation_config": "vllm", "override_generation_config": {"temperature": 0.1}},
            SamplingParams(temperature=0.1),
        ),
        (
            {"override_generation_config": '{"top_k": null, "top_p": null, "repetition_penalty": null, "min_p": 0.1}'},
            SamplingParams(temperature=0.6, min_p=0.1, max_tokens=7),
        ),
    ],
    ids=str,
)
def test_the_settings_of_the_server_for_defaults(model: Path, settings: Any, expected: SamplingParams) -> None:
    with LLM(str(model), **settings) as llm:
        assert llm.get_default_sampling_params() == expected
        count = expected.max_tokens or 16
        assert len(llm.generate("abc", use_tqdm=False)[0].outputs[0].token_ids) == count


# ---------------------------------------------------------------- numbers
NUMBERS = [
    "n", "best_of", "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs",
]  # fmt: skip
VALUES = [
    1e-320, -1e-320, 1e-45, -0.0, 0, 3.5e38, 1e308, math.nan, math.inf, -math.inf, 2**63, 2**64, -(2**63) - 1, 10**400,
    -(10**400), 1.5, True, "1", [],
]  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_used_or_refused_by_its_name(llm: LLM, name: str) -> None:
    for value in VALUES:
        try:
            (output,) = llm.generate("abc", SamplingParams(**{"max_tokens": 2, name: value}), use_tqdm=False)
            assert output.outputs
        except RequestError as error:
            assert error.param == name, (value, error)
            assert len(error.message) < 300


@pytest.mark.parametrize("value", VALUES)
def test_so_is_one_within_a_field_and_one_of_beams(llm: LLM, value: Any) -> None:
    for name, fields in (
        ("logit_bias", {"logit_bias": {1: value}}),
        ("stop_token_ids", {"stop_token_ids": (value,)}),
        ("allowed_token_ids", {"allowed_token_ids": (value,)}),
    ):
        try:
            llm.generate("abc", SamplingParams(max_tokens=2, **fields), use_tqdm=False)
        except InvalidRequest as error:
            assert (error.param or "").split("[")[0] == name, (value, error)
    for name in ("length_penalty", "width"):
        beams = BeamParams(**{"width": 2, name: value})
        try:
            llm.generate("abc", SamplingParams(max_tokens=2, temperature=0.0), beams=beams, use_tqdm=False)
        except InvalidRequest as error:
            assert error.param in (name, "best_of"), (value, error)


def test_beams_and_best_of_are_refused_where_logits_stand_for_log_probabilities(model: Path) -> None:
    with LLM(str(model), max_num_seqs=4, logprobs_mode="raw_logits") as llm:
        for params, beams, param in (
            (SamplingParams(temperature=0.0, max_tokens=2), BeamParams(width=2), "use_beam_search"),
            (SamplingParams(best_of=2, max_tokens=2), None, "best_of"),
        ):
            with pytest.raises(InvalidRequest, match="needs log probabilities") as caught:
                llm.generate("abc", params, beams=beams, use_tqdm=False)
            assert caught.value.param == param
        assert llm.generate("abc", SamplingParams(max_tokens=2, n=2), use_tqdm=False)
