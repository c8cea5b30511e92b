"""vLLM's own server in this process: its engine, its app, and a client that needs no port."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import httpx


class Server:
    """`engine` is an AsyncLLM, `app` what vLLM serves for it; `run` awaits in the loop that both live in."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.engine, self.app, self.args = loop, None, None, None

    def run(self, work: Coroutine[Any, Any, Any], seconds: float = 120) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def post(self, path: str, body: dict[str, Any], **given: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await client.post(path, json=body, **given)

        return self.run(ask())  # type: ignore[no-any-return]

    async def start(self, model: str, *flags: str) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.entrypoints.openai import api_server
        from vllm.sampling_params import SamplingParams
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.engine.async_llm import AsyncLLM

        given = [
            "--model",
            model,
            "--served-model-name",
            "testbed",
            "--enforce-eager",
            "--max-model-len",
            "256",
            *flags,
        ]
        self.args = make_arg_parser(FlexibleArgumentParser()).parse_args(given)
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(self.args))
        tasks = await self.engine.get_supported_tasks()
        self.app = api_server.build_app(self.args, tasks, self.engine.model_config)
        await api_server.init_app_state(self.engine, self.app.state, self.args, tasks)
        async for _ in self.engine.generate({"prompt_token_ids": [5] * 9}, SamplingParams(max_tokens=2), "first"):
            """vLLM's CPU build ends with an illegal instruction if the first step of its life has a single row."""


@contextmanager
def served(model: str, *flags: str) -> Iterator[Server]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = Server(loop)
    try:
        server.run(server.start(model, *flags), 240)
        yield server
    finally:
        if server.engine is not None:
            loop.call_soon_threadsafe(server.engine.shutdown)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
