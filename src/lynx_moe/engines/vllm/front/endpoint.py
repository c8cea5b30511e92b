"""`GET` and `POST /lynx_moe/policy` on vLLM's server: an endpoint plug-in (`vllm.endpoint_plugins: lynx_moe`).

vLLM loads endpoint plug-ins only where VLLM_PLUGINS names them; `lynx-moe serve` does. vLLM's own key check covers its
own paths alone, so the same check, with the same keys, stands before these two.
"""

import asyncio
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from vllm import envs
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

from lynx_moe.engines.shared.options import KEY
from lynx_moe.engines.shared.switching import PATH, Switch
from lynx_moe.engines.vllm.front import control
from lynx_moe.engines.vllm.launch.options import Options


class PolicyEndpoint:
    """See the module; vLLM makes one, attaches its routes and then hands over the engine client."""

    name = KEY
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self.client: Any = None
        self.switching = asyncio.Lock()

    def attach_router(self, app: FastAPI) -> None:
        router = APIRouter()
        router.add_api_route(PATH, self.tell, methods=["GET"])
        router.add_api_route(PATH, self.switch, methods=["POST"])
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Without the plugin's configuration there is nothing to control, and the routes answer 404."""
        if engine_client is not None and Options.of(engine_client.vllm_config) is not None:
            self.client = engine_client

    async def tell(self, request: Request) -> JSONResponse:
        self._admit(request)
        return JSONResponse(control.told(await self.client.collective_rpc("lynx_policy")))

    async def switch(self, request: Request) -> JSONResponse:
        """Body: as `Switch` takes it."""
        self._admit(request)
        try:
            asked = _asked(await request.body())
            async with self.switching:
                await control.switch_async(self.client, asked.policy, **asked.goals)
        except control.Refused as error:
            raise HTTPException(error.status, str(error)) from None
        return await self.tell(request)

    def _admit(self, request: Request) -> None:
        keys = [key for key in (request.app.state.args.api_key or [envs.VLLM_API_KEY]) if key]
        if keys and not AuthenticationMiddleware(request.app, keys).verify_token(request.headers):
            raise HTTPException(401, "Unauthorized")
        if self.client is None:
            raise HTTPException(404, f"the server was started without additional_config[{KEY!r}]")


def _asked(body: bytes) -> Switch:
    try:
        return Switch.of(body)
    except ValueError as error:
        raise control.Refused(str(error), control.BAD) from None
