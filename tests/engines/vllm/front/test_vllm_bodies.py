"""Bodies whose wish the server would drop are refused, all others reach it as they came."""

import asyncio
import json
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.testclient import TestClient
from pydantic import BaseModel

from lynx_moe.engines.vllm.front import bodies
from lynx_moe.engines.vllm.front.admission import Unwelcome

WISH = {"lynx_moe": "exact"}


class Takes(BaseModel):
    prompt: str = ""
    vllm_xargs: dict[str, Any] | None = None


class Drops(BaseModel):
    prompt: str = ""


app = FastAPI()


@app.post("/v1/completions")
async def takes(request: Takes, raw: Request) -> Any:
    return [request.vllm_xargs, len(await raw.body())]


@app.post("/cohere/v2/chat")
@app.post("/tokenize")
async def drops(request: Drops) -> str:
    return request.prompt


@app.post("/invocations")
@app.post("/v1/audio/transcriptions")
async def reads_by_itself(raw: Request) -> int:
    return len(await raw.body())


@app.websocket("/v1/realtime")
async def realtime(socket: WebSocket) -> None:
    await socket.accept()
    with suppress(WebSocketDisconnect):
        while True:
            await socket.send_text("heard " + await socket.receive_text())


app.middleware_stack = app.build_middleware_stack()  # as vLLM's build_app leaves it
bodies.build_app(lambda: app)


@pytest.fixture(scope="module")
def client() -> Any:
    return TestClient(app)


def refused(answer: httpx.Response) -> str:
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("BadRequestError", 400)
    assert "\n" not in error["message"]
    return str(error["message"])


@pytest.mark.parametrize("key", ["lynx_moe", "lynx", "LYNX-MOE"])
def test_a_path_that_drops_the_field_is_refused_and_named(client: Any, key: str) -> None:
    said = refused(client.post("/cohere/v2/chat", json={"prompt": "a", "vllm_xargs": {key: "exact"}}))
    assert "/cohere/v2/chat takes no vllm_xargs" in said
    assert "such as /v1/chat/completions" in said


@pytest.mark.parametrize("path", ["/v1/completions", "/cohere/v2/chat", "/invocations"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (WISH, "'lynx_moe' does nothing here; write vllm_xargs: {\"lynx_moe\": ...}"),
        ({"lynx": "exact"}, "'lynx' does nothing here"),
        ({"lynx_moe_verify": "remap"}, 'write vllm_xargs: {"lynx_moe_verify": ...}'),
        ({"vllm_xarg": WISH}, "'vllm_xarg' is not read by the server; write vllm_xargs"),
        ({"vllm-xargs": WISH}, "'vllm-xargs' is not read"),
        ({"extra_body": {"vllm_xargs": {}, "lynx_moe": "exact"}}, "'extra_body' is not read"),
        ({"extra_args": WISH}, "'extra_args' is not read"),
    ],
)
def test_a_wish_in_the_wrong_place_is_refused(client: Any, path: str, body: Any, message: str) -> None:
    assert message in refused(client.post(path, json={"prompt": "a", **body}))


def test_the_client_s_word_extra_body_around_the_field_is_refused(client: Any) -> None:
    assert "extra_body" in refused(client.post("/v1/completions", json={"extra_body": {"vllm_xargs": WISH}}))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a", "vllm_xargs": WISH}),
        ("/v1/completions", {"prompt": "a", "vllm_xargs": {"lynx": 1}}),  # admission's to refuse
        ("/invocations", {"prompt": "a", "vllm_xargs": WISH}),
        ("/cohere/v2/chat", {"prompt": "what is a lynx, moe?", "metadata": {"lynx": "cat"}, "vllm_xargs": {"moe": 1}}),
        ("/tokenize", {"prompt": "a", "vllm_xargs": WISH}),
    ],
)
def test_other_bodies_reach_the_server_as_they_came(client: Any, path: str, body: Any) -> None:
    assert client.post(path, json=body).status_code == 200


def test_a_body_in_pieces_or_of_another_kind_comes_whole(client: Any) -> None:
    pieces = [b'{"prompt": "', b"lynx_moe " * 9000, b'", "vllm_xargs": {"lynx_moe":', b' "exact"}}']
    answer = client.post("/v1/completions", content=iter(pieces), headers={"content-type": "application/json"})
    assert answer.json() == [WISH, sum(map(len, pieces))]
    for body in (b"lynx_moe", b"[1, 'lynx']", b'["lynx_moe"]', b"\xff\xfe lynx_moe"):
        for headers in ({}, {"content-type": "application/json"}):
            assert client.post("/v1/audio/transcriptions", content=body, headers=headers).json() == len(body)
    assert client.post("/invocations", content=b"").json() == 0


def test_what_the_engine_would_not_take_is_refused_before_an_answer_begins(client: Any) -> None:
    config = SimpleNamespace(additional_config={"lynx_moe": {"policy": "lynx"}})
    app.state.engine_client = SimpleNamespace(vllm_config=config, output_processor=None)
    try:
        given = {"prompt": "a", "vllm_xargs": {"lynx_moe": "nonsense"}}
        assert "unknown policy 'nonsense'" in refused(client.post("/v1/completions", json=given))
        assert client.post("/v1/completions", json={**given, "vllm_xargs": WISH}).status_code == 200
    finally:
        del app.state.engine_client


def test_an_event_of_a_websocket_is_answered_by_an_error_and_goes_no_further(client: Any) -> None:
    with client.websocket_connect("/v1/realtime") as socket:
        socket.send_text(json.dumps({"type": "session.update", "vllm_xargs": WISH}))
        assert "takes no vllm_xargs" in socket.receive_json()["error"]
        socket.send_text("lynx_moe")
        assert socket.receive_text() == "heard lynx_moe"
        socket.send_text(json.dumps({"type": "session.update", "model": "m"}))
        assert socket.receive_text().startswith("heard {")


def test_a_line_of_a_batch_whose_wish_would_be_lost_becomes_an_error() -> None:
    class Line(BaseModel, extra="allow"):
        url: str = "/v1/chat/completions"
        body: Any

    class Body(BaseModel, extra="allow"):
        vllm_xargs: dict[str, Any] | None = None

    async def handler(body: Body) -> str:
        return "answered"

    async def run(chosen: Any, line: Line, tracker: None) -> Any:
        return await chosen(line.body)

    def answer(**body: Any) -> Any:
        return asyncio.run(bodies.run_request(run, handler, Line(body=Body(**body)), None))

    assert answer(vllm_xargs=WISH) == answer(other=1) == "answered"
    with pytest.raises(Unwelcome, match="'lynx_moe' does nothing here"):
        answer(**WISH)
    with pytest.raises(Unwelcome, match="'vllm_xarg' is not read"):
        answer(vllm_xarg=WISH)


def test_a_body_that_nobody_can_parse_is_the_server_s_to_refuse() -> None:
    for body in (b'{"lynx_moe": ', b'{"lynx_moe": ' + b"[" * 100_000, b"[1, \xffmoe"):
        assert bodies._object(body) is None
