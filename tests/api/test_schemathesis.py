"""Requests made from the published document: every reply is described, and none is a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from support.client_fakes import TOKENIZER
from support.server_process import ServerProcess

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("model")
    TOKENIZER._backend.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text("{}")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "chat_template": template}))
    with ServerProcess(directory, fake=True, env={"FAKE_INFO": '{"max_model_len": 64}'}) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def document(server: ServerProcess) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_no_request_of_the_document_is_a_500(document: Any) -> None:
    operations = [result.ok() for result in document.get_all_operations()]
    assert len(operations) >= 12
    for operation in operations:
        num_examples = 40 if operation.method == "post" else 3

        @hypothesis.settings(max_examples=num_examples, derandomize=True, deadline=None, database=None)
        @hypothesis.given(case=operation.as_strategy())
        def check(case: Any) -> None:
            response = case.call()
            # The fake model writes what no constraint allows, and that is told.
            if "The constraint on the output of this request failed" not in response.text:
                case.validate_response(response, checks=CHECKS)

        check()


def test_the_server_is_as_it_was(server: ServerProcess) -> None:
    assert server.complete("a", max_tokens=2).status == 200
    assert "Traceback" not in server.stderr
    server.wait_metric("vllm:num_requests_running", lambda value: value == 0)
