"""Adapters over HTTP: who may load them, what they are called, and that every API takes their names."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from octavo.base.config import AdaptersConfig
from octavo.base.errors import CheckpointError, ServerError
from octavo.served.adapters import load_modules
from support.server_fakes import MODEL, Family, Server, engine_info, make_server

KEY = {"authorization": "Bearer boss"}
MESSAGES = [{"role": "user", "content": "a"}]


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    found = {}
    for name in ("sql", "damaged", "long"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
        found[name] = str(tmp_path / name)
    return found


def load(server: Server, name: str, path: str, **fields: Any) -> Any:
    return server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path, **fields}, KEY)


def test_loading_is_for_administrators_unless_the_settings_say_otherwise(paths: dict[str, str]) -> None:
    body = {"lora_name": "sql", "lora_path": paths["sql"]}
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        assert make_server(takes_adapters=True).post(path, body).status == 404
        assert make_server(admin_api_key="boss").post(path, body, KEY).status == 404  # without --enable-lora
        assert make_server(takes_adapters=True, admin_api_key="boss").post(path, body).status in (401, 403)
    assert make_server(takes_adapters=True, allow_runtime_lora_updating=True).post(
        "/v1/load_lora_adapter", body
    ).status == 200  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 5}),
        ("/api/chat", {"messages": MESSAGES, "stream": False}),
    ],
)
def test_every_api_takes_the_name_of_an_adapter(path: str, body: dict[str, Any], paths: dict[str, str]) -> None:
    server = make_server(takes_adapters=True, admin_api_key="boss")
    assert load(server, "sql", paths["sql"]).status == 200
    (key,) = server.engine.adapters
    for name, expected in (("sql", ("sql", key, paths["sql"])), (MODEL, ("", "", ""))):
        reply = server.post(path, {"model": name, **body})
        assert reply.status == 200 and reply.json()["model"] == name
        asked = server.engine.requests[-1]
        assert (asked.adapter_name, asked.adapter, asked.adapter_path) == expected


def test_an_adapter_has_a_card_and_goes_again(paths: dict[str, str]) -> None:
    server = make_server(takes_adapters=True, admin_api_key="boss")
    assert load(server, "sql", paths["sql"]).body == b"Success: LoRA adapter 'sql' added successfully."
    cards = {card["id"]: card for card in server.get("/v1/models").json()["data"]}
    assert (cards["sql"]["parent"], cards["sql"]["root"]) == (MODEL, paths["sql"]) and cards[MODEL]["parent"] is None
    assert server.get("/v1/models/sql").json()["id"] == "sql"
    first = set(server.engine.adapters)
    assert load(server, "sql", paths["sql"]).status == 400
    assert load(server, "sql", paths["sql"], load_inplace=True).status == 200
    assert first.isdisjoint(server.engine.adapters)  # another key: what was computed before is not found again
    gone = server.post("/v1/unload_lora_adapter", {"lora_name": "sql", "lora_int_id": 1}, KEY)
    assert gone.status == 200 and not server.engine.adapters
    assert server.complete(model="sql").status == 404
    assert server.post("/v1/unload_lora_adapter", {"lora_name": "sql"}, KEY).status == 404


@pytest.mark.parametrize(
    ("name", "where", "message"),
    [("x", "damaged", "tensor 'x': it holds NaN"), ("x", "/nowhere", "no such directory"), (MODEL, "sql", "is taken"),
     ("", "sql", "1 to 256"), ("a\n", "sql", "printable")],
)  # fmt: skip
def test_what_cannot_be_loaded_is_refused(name: str, where: str, message: str, paths: dict[str, str]) -> None:
    server = make_server(takes_adapters=True, admin_api_key="boss")
    reply = load(server, name, paths.get(where, where))
    assert reply.status == 400 and message in reply.error["message"]
    assert server.get("/v1/models").json()["data"][-1]["parent"] is None


def test_those_of_a_directory_are_loaded_when_they_are_named(paths: dict[str, str], tmp_path: Path) -> None:
    server = make_server(takes_adapters=True, lora_resolver_dir=str(tmp_path))
    assert server.complete(model="sql").status == 200
    assert list(server.engine.adapters.values()) == [paths["sql"]]
    reply = server.complete(model="damaged")
    assert reply.status == 400 and "NaN" in reply.error["message"]
    assert [card["id"] for card in server.get("/v1/models").json()["data"]][-1] == "sql"
    for name in ("../" + tmp_path.name + "/sql", "sql/.", ".", "..", "s" * 200):
        assert server.complete(model=name).status == 404


def test_what_an_adapter_has_beyond_the_model_is_for_its_requests_alone(paths: dict[str, str]) -> None:
    """Positions, and tokens behind the model's."""
    info = engine_info(num_positions=100, extra_tokens=8)
    server = make_server(takes_adapters=True, admin_api_key="boss", info=info)
    for name in ("sql", "long"):
        assert load(server, name, paths[name]).status == 200
    new = info.vocab_size + 3
    for name in (MODEL, "sql", "long"):
        expected = 200 if name == "long" else 400
        for prompt in ("a" * 150, [new]):
            reply = server.post("/v1/completions", {"model": name, "prompt": prompt, "max_tokens": 5})
            assert reply.status == expected, (name, reply.json())
        body = {"model": name, "prompt": "a", "max_tokens": 5, "logit_bias": {str(new): 1.0}}
        assert server.post("/v1/completions", body).status == expected
    body = {"model": "long", "prompt": [new + 1], "max_tokens": 5}
    assert server.post("/v1/completions", body).status == 400


def test_an_adapter_comes_and_goes_in_all_processes_under_one_key(paths: dict[str, str]) -> None:
    servers = [make_server(takes_adapters=True, admin_api_key="boss", siblings=each) for each in Family(2).members]
    one, other = servers
    assert load(one, "sql", paths["sql"]).status == 200
    assert one.engine.adapters == other.engine.adapters and len(one.engine.adapters) == 1
    assert [server.complete(model="sql").status for server in servers] == [200, 200]
    assert "is taken" in load(other, "sql", paths["sql"]).error["message"]
    (key,) = one.engine.adapters
    assert load(other, "sql", paths["sql"], load_inplace=True).status == 200
    assert one.engine.adapters == other.engine.adapters and key not in one.engine.adapters
    assert other.post("/v1/unload_lora_adapter", {"lora_name": "sql"}, KEY).status == 200
    assert [server.complete(model="sql").status for server in servers] == [404, 404]
    assert one.engine.adapters == other.engine.adapters == {}


def test_an_adapter_that_one_process_cannot_serve_is_served_by_none(paths: dict[str, str]) -> None:
    one, other = (make_server(takes_adapters=True, admin_api_key="boss", siblings=each) for each in Family(2).members)

    async def refuse(key: str, path: str, *, is_prompt: bool = False) -> None:
        raise ServerError("there is not enough memory")

    other.engine.load_adapter = refuse  # type: ignore[method-assign]
    assert "not enough memory" in load(one, "sql", paths["sql"]).error["message"]
    assert one.engine.adapters == {} and one.complete(model="sql").status == 404
    assert load(one, "damaged", paths["damaged"]).status == 400


@pytest.fixture
def prompts(tmp_path: Path) -> dict[str, str]:
    found = {}
    for name, kind in {"rows": "PROMPT_TUNING", "more": "P_TUNING", "weights": "LORA"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(f'{{"peft_type": "{kind}"}}')
        found[name] = str(tmp_path / name)
    return found


def test_prompt_adapters_are_known_by_their_files(prompts: dict[str, str]) -> None:
    server = make_server(takes_adapters=True, admin_api_key="boss")
    assert load(server, "rows", prompts["rows"]).body == b"Success: prompt adapter 'rows' added successfully."
    assert load(server, "weights", prompts["weights"]).body == b"Success: LoRA adapter 'weights' added successfully."
    assert load(server, "more", prompts["more"]).status == 200
    cards = {card["id"]: card for card in server.get("/v1/models").json()["data"]}
    assert list(cards)[-3:] == ["weights", "rows", "more"] and cards["rows"]["parent"] == MODEL
    for name, expected in (("rows", 6), ("more", 6), ("weights", 0), (MODEL, 0)):
        assert server.complete(model=name).status == 200
        assert server.engine.requests[-1].num_virtual_tokens == expected
    gone = server.post("/v1/unload_lora_adapter", {"lora_name": "rows"}, KEY)
    assert gone.body == b"Success: prompt adapter 'rows' removed successfully."


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages/count_tokens", {"messages": MESSAGES}),
        ("/v1/responses/input_tokens", {"input": "a"}),
        ("/v1/chat/completions/input_tokens", {"messages": MESSAGES}),
    ],
)
def test_virtual_tokens_are_counted(path: str, body: dict[str, Any], prompts: dict[str, str]) -> None:
    server = make_server(takes_adapters=True, admin_api_key="boss")
    assert load(server, "rows", prompts["rows"]).status == 200
    counts = [server.post(path, {"model": name, **body}).json()["input_tokens"] for name in (MODEL, "rows")]
    assert counts[1] == counts[0] + 6


def test_virtual_tokens_take_room(prompts: dict[str, str]) -> None:
    server = make_server(takes_adapters=True, admin_api_key="boss")
    assert load(server, "rows", prompts["rows"]).status == 200
    longest = server.get("/v1/models").json()["data"][0]["max_model_len"]
    for name, room in ((MODEL, longest - 3), ("rows", longest - 9)):
        body = {"model": name, "prompt": "abc", "max_tokens": room}
        assert server.post("/v1/completions", body).status == 200
        assert server.post("/v1/completions", body | {"max_tokens": room + 1}).status == 400
        cut = {"model": name, "prompt": "a" * longest, "max_tokens": 5, "truncate_prompt_tokens": -1}
        assert server.post("/v1/completions", cut).status == 200
        asked = server.engine.requests[-1]
        assert asked.num_prompt_tokens == longest - 5


@pytest.mark.parametrize(
    ("flag", "name", "message"),
    [
        ("lora_modules", "rows", "--lora-modules a: .* is not a LoRA adapter: its peft_type is PROMPT_TUNING"),
        ("prompt_adapters", "weights", "--prompt-adapters a: .* is not a prompt adapter: its peft_type is LORA"),
    ],
)
def test_an_adapter_of_another_kind_than_it_is_named_for_ends_the_start(
    flag: str, name: str, message: str, prompts: dict[str, str]
) -> None:
    adapters = make_server(takes_adapters=True).model.adapters
    config = AdaptersConfig(**{flag: ["a=" + prompts[name]]})
    with pytest.raises(CheckpointError, match=message):
        asyncio.run(load_modules(adapters, config))
