"""`GET` and `POST /lynx_moe/policy` on SGLang's server, behind its own check of keys."""

import asyncio
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from lynx_moe.engines.sglang.front import asking
from lynx_moe.engines.shared.switching import PATH, Switch

_switching = asyncio.Lock()


def attach(app: FastAPI) -> None:
    """Gives SGLang's server the two routes. Where it has a key for operators, a switch asks for that one."""
    from sglang.srt.utils.auth import AuthLevel, auth_level

    app.add_api_route(PATH, tell, methods=["GET"])
    app.add_api_route(PATH, auth_level(AuthLevel.ADMIN_OPTIONAL)(switch), methods=["POST"])


async def tell() -> JSONResponse:
    try:
        return JSONResponse(await asking.told(_manager()))
    except asking.Refused as error:
        raise HTTPException(404, str(error)) from None


async def switch(request: Request) -> JSONResponse:
    """Body: {"policy": SPEC}."""
    try:
        asked = Switch.of(await request.body())
        async with _switching:
            return JSONResponse(await asking.switch(_manager(), asked))
    except ValueError as error:
        raise HTTPException(400, str(error)) from None


def _manager() -> Any:
    from sglang.srt.entrypoints import http_server

    return http_server._global_state.tokenizer_manager
