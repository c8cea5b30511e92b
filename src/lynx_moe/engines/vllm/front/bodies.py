"""Wishes that would be lost on the way: bodies of requests, seen before vLLM's server drops what it does not know.

Completions, chat, responses and messages hand `vllm_xargs` on, and admission sees it. Other paths that generate drop
it, as every path drops a wish beside `vllm_xargs`, or under a misspelt name of it: an `exact` request would be
remapped, and nobody told. They are refused with 400; a body without such a word is not even parsed.
"""

import difflib
import functools
import json
import typing
from collections.abc import Awaitable, Callable, MutableMapping
from types import SimpleNamespace
from typing import Any

from starlette.middleware import Middleware
from starlette.routing import Match

from lynx_moe.engines.shared.options import KEY
from lynx_moe.engines.shared.step import wishes
from lynx_moe.engines.vllm.front import admission

FIELD = "vllm_xargs"
OTHER_FIELDS = ("extra_body", "extra_args", "xargs")  # what the field is called in clients, and in Python
BY_CONTENT = "/invocations"  # passes a body on to chat or completions, by what is in it
DECODES_NOTHING = (  # last parts of paths
    *("tokenize", "detokenize", "count_tokens"),
    *("embeddings", "embed", "pooling", "classify", "score", "rerank"),
)
PIECES = (b"ynx", b"moe", b"xarg")  # one of them is in every body that asks for something
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def build_app(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Around vLLM's build_app: innermost, so that whoever has no key is told so first."""
    app = original(*args, **kwargs)
    app.user_middleware.append(Middleware(Bodies))
    if app.middleware_stack is not None:  # vLLM's last step has built it already
        app.middleware_stack = app.build_middleware_stack()
    return app


async def run_request(original: Any, handler: Any, request: Any, *args: Any) -> Any:
    """Around run-batch's function for one line of its file, which becomes an error if its wish would be lost."""
    reason = lost(request.url, getattr(request.body, "model_extra", None) or {}, takes_field=True)

    async def refuse(_: Any) -> None:
        raise admission.Unwelcome(reason)

    return await original(handler if reason is None else refuse, request, *args)


class Bodies:
    """ASGI middleware; see the module."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self.app(scope, _heard(scope, receive, send), send)
        elif not _is_looked_at(scope):
            await self.app(scope, receive, send)
        else:
            messages = await _whole(receive)
            body = _object(b"".join(message.get("body", b"") for message in messages))
            reason = body and (
                lost(scope["path"], body, takes_field=_takes_field(scope, body)) or _unwelcome(scope, body)
            )
            await (_answer(send, reason) if reason else self.app(scope, _again(messages, receive), send))


def _is_looked_at(scope: Message) -> bool:
    """Files (audio) are not read into memory for this: their forms have the field."""
    if scope["type"] != "http" or scope["method"] != "POST" or _last(scope["path"]) in DECODES_NOTHING:
        return False
    return any(name == b"content-type" and b"json" in value for name, value in scope["headers"])


def _lost_on(scope: Message, body: dict[str, Any]) -> str | None:
    return lost(scope["path"], body, takes_field=_takes_field(scope, body))


def lost(path: str, body: dict[str, Any], *, takes_field: bool) -> str | None:
    """Why a wish in this body would be lost; None: it would not, or there is none."""
    beside = wishes.first_key(body)
    if beside is not None:
        key = beside if beside in wishes.KEYS else KEY
        return f"{KEY}: {beside[:50]!r} does nothing here; write " + f'{FIELD}: {{"{key}": ...}}'
    for name, value in body.items():
        if not _asks(value):
            continue
        if name == FIELD and not takes_field:
            return (
                f"{KEY}: {path} takes no {FIELD}, so the request would follow the server's policy; leave it out, or "
                "use a path that takes it, such as /v1/chat/completions (or /inference/v1/generate, as "
                "sampling_params.extra_args)"
            )
        if name != FIELD and _is_meant(name):
            return f"{KEY}: {name!r} is not read by the server; write {FIELD}"
    return None


def _unwelcome(scope: Message, body: dict[str, Any]) -> str | None:
    """Why the engine would not take the wish. It says so itself, but where an answer is streamed not always before the
    answer begins (responses)."""
    client, given = getattr(scope["app"].state, "engine_client", None), body.get(FIELD)
    if client is None or not isinstance(given, dict):
        return None
    try:
        admission.check(client, SimpleNamespace(extra_args=given))
    except admission.Unwelcome as error:
        return str(error)
    return None


def _asks(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return wishes.first_key(value) is not None or _asks(value.get(FIELD))


def _is_meant(name: str) -> bool:
    return name in OTHER_FIELDS or bool(difflib.get_close_matches(name.lower().replace("-", "_"), [FIELD], cutoff=0.8))


def _takes_field(scope: Message, body: dict[str, Any]) -> bool:
    """Whether the path's endpoint has a request with the field, by the types of its arguments."""
    if scope["path"].endswith(BY_CONTENT):
        return "messages" in body or "prompt" in body
    route = next((route for route in scope["app"].routes if route.matches(scope)[0] == Match.FULL), None)
    endpoint = getattr(route, "endpoint", None)
    return endpoint is not None and _has_field(endpoint)


@functools.cache
def _has_field(endpoint: Any) -> bool:
    kinds = [kind for hint in typing.get_type_hints(endpoint).values() for kind in (hint, *typing.get_args(hint))]
    return any(FIELD in getattr(kind, "model_fields", ()) or _hands_on(kind) for kind in kinds)


def _hands_on(kind: Any) -> bool:
    """A batch of chats makes chats of all that it was given."""
    return hasattr(kind, "to_chat_completion_request") and kind.model_config.get("extra") == "allow"


def _heard(scope: Message, receive: Receive, send: Send) -> Receive:
    """Events of a websocket: one whose wish would be lost is answered by an error event, and goes no further."""

    async def checked() -> Message:
        while True:
            message = await receive()
            event = _object((message.get("text") or "").encode())
            reason = event and lost(scope["path"], event, takes_field=False)
            if not reason:
                return message
            text = json.dumps({"type": "error", "error": reason, "code": "invalid_event"})
            await send({"type": "websocket.send", "text": text})

    return checked


async def _whole(receive: Receive) -> list[Message]:
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    return messages


def _again(messages: list[Message], receive: Receive) -> Receive:
    waiting = iter(messages)

    async def replay() -> Message:
        return next(waiting, None) or await receive()

    return replay


def _object(body: bytes) -> dict[str, Any] | None:
    """The JSON object that might hold a wish; None for anything else."""
    lower = body.lower()
    if not any(piece in lower for piece in PIECES):
        return None
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):  # the server's own parser says so, as of any other body
        return None
    return found if isinstance(found, dict) else None


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


async def _answer(send: Send, reason: str) -> None:
    error = {"message": reason, "type": "BadRequestError", "param": FIELD, "code": 400}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})
