"""Every way into vLLM's server and engine: a wish is honoured or refused, and never lost, nor the end of the engine.

The server is vLLM's own, in this process, with a user's worker extension beside ours.
"""

import argparse
import asyncio
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app import Server, served
from vllm import SamplingParams
from vllm.engine.protocol import StreamingInput
from vllm.sampling_params import RequestOutputKind

from lynx_moe.engines.vllm import Refused, switch_async
from lynx_moe.testbed import path

POLICY = "lynx:alpha=0.3,beta=1"
RUN_BATCH = importlib.import_module("vllm.entrypoints.launchers.run_batch")
TURN = [{"role": "user", "content": "a"}]
CHAT = {"model": "testbed", "messages": TURN, "max_tokens": 3}
TEXT = {"model": "testbed", "prompt": "a", "max_tokens": 3}
TOKENS = {"model": "testbed", "token_ids": [5, 6], "sampling_params": {"max_tokens": 3}}
HONOURS: dict[str, tuple[str, dict[str, Any]]] = {
    "completions": ("/v1/completions", TEXT),
    "chat": ("/v1/chat/completions", CHAT),
    "batch": ("/v1/chat/completions/batch", {**CHAT, "messages": [TURN, TURN]}),
    "responses": ("/v1/responses", {"model": "testbed", "input": "a", "max_output_tokens": 3}),
    "messages": ("/v1/messages", CHAT),
    "invocations, text": ("/invocations", TEXT),
    "invocations, chat": ("/invocations", CHAT),
    "generate": ("/inference/v1/generate", TOKENS),
}
DROPS = {
    "/generative_scoring": {"model": "testbed", "query": "a", "items": ["b"], "label_token_ids": [5, 6]},
    "/v1/systemone": {"state": "a", "questions": {"q": {"type": "noul"}}},
    "/inference/v1/generate": TOKENS,
}
DECODE_NOTHING = {
    *("/tokenize", "/detokenize", "/v1/messages/count_tokens", "/ping", "/lynx_moe/policy"),
    *("/v1/chat/completions/render", "/v1/completions/render", "/v1/messages/render", "/v1/responses/render"),
    *("/v1/chat/completions/derender", "/v1/completions/derender"),
    *("/v1/responses/{response_id}/cancel", "/inference/v1/abort_requests", "/abort_requests"),
    *("/scale_elastic_ep", "/is_scaling_elastic_ep", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
    *("/start_profile", "/stop_profile", "/fault_tolerance/apply"),
}
BAD = (
    ({"lynx_moe": "nonsense"}, "unknown policy 'nonsense'"),
    ({"lynx_moe": -7}, "-7 is no price: it must be finite, 0"),
    ({"lynx_moe": ["exact"]}, "must be a string"),
    ({"lynx_moe": "oea:k0=9"}, "more than the model's top_k=8"),
    ({"lynx": "exact"}, "the key 'lynx' asks for nothing; write 'lynx_moe'"),
    ({"lynx_moe": "exact", "LYNX_MOE": "exact"}, "the key 'LYNX_MOE' asks for nothing"),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("server")
    template = folder / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    options = json.dumps({"lynx_moe": {"policy": POLICY}})
    flags = ("--additional-config", options, "--chat-template", str(template), "--enable-scale-out")
    flags += ("--worker-extension-cls", "user_extension.Theirs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_PLUGINS", "lynx_moe")
        with served(str(path("qwen3-moe")), *flags) as started:
            yield started


def with_wish(way: str, wish: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    where, body = HONOURS[way]
    if way == "generate":
        return where, {**body, "sampling_params": {**body["sampling_params"], "extra_args": wish}}
    return where, {**body, "vllm_xargs": wish}


def message(answer: Any) -> str:
    return str(answer.json()["error"]["message"])


@pytest.mark.parametrize("way", HONOURS)
def test_a_path_honours_a_wish_or_says_what_is_wrong_with_it(server: Server, way: str) -> None:
    for wish in ({"lynx_moe": "exact"}, {"lynx_moe": "oea:k0=1"}, {"moe_of_another": "nonsense"}):
        answer = server.post(*with_wish(way, wish))
        assert answer.status_code == 200, answer.text
    for wish, reason in BAD:
        answer = server.post(*with_wish(way, wish))
        assert answer.status_code == 400, (wish, answer.text)
        assert reason in message(answer)
        assert "\n" not in message(answer)


@pytest.mark.parametrize("way", ["completions", "chat", "responses", "messages", "generate"])
def test_a_bad_wish_is_refused_before_anything_is_streamed(server: Server, way: str) -> None:
    where, body = with_wish(way, {"lynx_moe": "nonsense"})
    answer = server.post(where, {**body, "stream": True})
    assert answer.status_code == 400
    assert "unknown policy 'nonsense'" in message(answer)


@pytest.mark.parametrize("where", DROPS)
def test_a_path_that_drops_a_wish_refuses_it(server: Server, where: str) -> None:
    for wish in ({"lynx_moe": "exact"}, {"lynx_moe": "nonsense"}, {"lynx": "exact"}):
        answer = server.post(where, {**DROPS[where], "vllm_xargs": wish})
        assert answer.status_code == 400
        assert f"{where} takes no vllm_xargs" in message(answer)
    assert "takes no vllm_xargs" not in server.post(where, {**DROPS[where], "vllm_xargs": {"other": 1}}).text


def test_a_wish_beside_the_field_is_refused(server: Server) -> None:
    for body in ({"lynx_moe": "exact"}, {"extra_body": {"vllm_xargs": {"lynx_moe": "exact"}}}):
        assert server.post("/v1/completions", {**TEXT, **body}).status_code == 400


def test_no_path_was_forgotten(server: Server) -> None:
    routes = [route for route in server.app.routes if "POST" in (getattr(route, "methods", None) or ())]
    known = {where for where, _ in HONOURS.values()} | set(DROPS) | DECODE_NOTHING
    assert {route.path for route in routes} - known == set()


def outputs(server: Server, prompt: Any, extra: Any = None) -> list[int]:
    """The tokens that `AsyncLLM.generate` gives."""
    params = SamplingParams(max_tokens=3, temperature=0, extra_args=extra, output_kind=RequestOutputKind.DELTA)

    async def collect() -> list[int]:
        found: list[int] = []
        async for output in server.engine.generate(prompt, params, f"r{len(known)}"):
            found += output.outputs[0].token_ids
        return found

    known.append(1)
    return server.run(collect())  # type: ignore[no-any-return]


known: list[int] = []


async def parts(*wishes: Any) -> Any:
    for wish in wishes:
        params = SamplingParams(max_tokens=2, ignore_eos=True, extra_args=wish, output_kind=RequestOutputKind.DELTA)
        yield StreamingInput({"prompt_token_ids": [5, 6, 7]}, params)


@pytest.mark.parametrize(("wish", "reason"), BAD, ids=str)
@pytest.mark.parametrize("place", [0, 1])
def test_a_bad_wish_in_a_stream_is_refused_and_the_engine_goes_on(
    server: Server, wish: Any, reason: str, place: int
) -> None:
    given: list[Any] = [None, {"lynx_moe": "exact"}]
    given[place] = wish
    with pytest.raises(ValueError, match=reason):
        outputs(server, parts(*given))
    assert outputs(server, parts({"lynx_moe": "oea:k0=1"}, None, {"lynx_moe": "exact"}))
    with pytest.raises(ValueError, match=reason):
        outputs(server, {"prompt_token_ids": [5, 6]}, wish)


def test_what_passes_the_door_by_does_not_end_the_engine(server: Server) -> None:
    from lynx_moe.engines.vllm.front.admission import of

    door = of(server.engine)
    assert door is not None
    assert door.model is not None  # told by the workers
    plain = outputs(server, {"prompt_token_ids": [5, 6]})

    async def behind(wish: Any) -> Any:
        params = SamplingParams(max_tokens=3, temperature=0, extra_args=wish, output_kind=RequestOutputKind.DELTA)
        add = type(server.engine).add_request.__wrapped__  # vLLM's own
        queue = await add(server.engine, f"behind{len(known)}", {"prompt_token_ids": [5, 6]}, params)
        found: list[int] = []
        while True:
            output = await queue.get()
            found += output.outputs[0].token_ids
            if output.finished:
                return found

    for wish, _ in (*BAD, ({"lynx_moe": "reap:share=0.5,data=/etc/hostname"}, ""), ({"lynx_moe": {"a": 1}}, "")):
        known.append(1)
        assert server.run(behind(wish)) == plain  # alone, it is not remapped anyway
    assert not server.engine.errored


def test_run_batch_says_it_line_by_line(server: Server, tmp_path: Path) -> None:
    bodies = [{**CHAT, "vllm_xargs": {"lynx_moe": "exact"}}, *({**CHAT, "vllm_xargs": wish} for wish, _ in BAD)]
    bodies.append({**CHAT, "lynx_moe": "exact"})
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for number, body in enumerate(bodies)
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    files = {"input_file": str(source), "output_file": str(target), "output_tmp_dir": None}
    args = argparse.Namespace(**{**vars(server.args), **files})
    server.run(RUN_BATCH.run_batch(server.engine, args))
    first, *others = sorted(map(json.loads, target.read_text().splitlines()), key=lambda line: int(line["custom_id"]))
    assert first["response"]["status_code"] == 200
    for answer, reason in zip(others, [*(reason for _, reason in BAD), "does nothing here"], strict=True):
        assert answer["response"]["status_code"] == 400
        assert reason in answer["error"]["error"]["message"]


def test_a_user_s_worker_extension_stands_beside_ours(server: Server) -> None:
    (weights,) = server.run(server.engine.collective_rpc("weights_seen"))
    assert weights > 0
    assert server.run(switch_async(server.engine, "oea:k0=2")) == "oea:k0=2"
    with pytest.raises(Refused, match="did you mean 'lynx'"):
        server.run(switch_async(server.engine, "linx"))
    answer = server.post("/lynx_moe/policy", {"policy": POLICY})
    assert (answer.status_code, answer.json()["policy"]) == (200, POLICY)
    answer = server.post("/lynx_moe/policy", {"policy": "linx"})
    assert (answer.status_code, "did you mean 'lynx'" in message(answer)) == (400, True)


def test_the_engine_is_alive_after_all_that(server: Server) -> None:
    assert asyncio.run_coroutine_threadsafe(server.engine.check_health(), server.loop).result(10) is None
    assert server.post("/v1/completions", TEXT).status_code == 200
