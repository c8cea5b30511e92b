"""The policy of a running server and its goals, asked for and switched over HTTP."""

import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError

from lynx_moe.engines.shared.switching import PATH, Switch
from lynx_moe.lab.watch.fetch import base_of, opening

KEY_VARIABLE = "VLLM_API_KEY"
SECONDS = 60.0


def ask(url: str, path: str, body: bytes | None = None) -> str:
    """The text that a server answers, with the key of the environment. Raises ValueError where there is none, or it is
    an error, in one line."""
    with opened(url, path, body) as answer:
        text: str = answer.read().decode()
    return text


@contextmanager
def opened(url: str, path: str, body: bytes | None = None) -> Iterator[Any]:
    """The answer while it comes. Raises ValueError as `ask` does."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY_VARIABLE):
        headers["Authorization"] = f"Bearer {key}"
    address = f"{base_of(url)}{path}"
    try:
        answer = opening(urllib.request.Request(address, body, headers), SECONDS)
    except HTTPError as error:
        said = _said(error.read().decode(errors="replace"))
        hint = f"; {KEY_VARIABLE} holds the key that is sent" if error.code == 401 else ""
        raise ValueError(f"{address} answers {error.code}: {said}{hint}") from None
    except (OSError, ValueError, HTTPException) as error:
        raise ValueError(f"{address} cannot be reached ({getattr(error, 'reason', error)})") from None
    with answer:
        try:
            yield answer
        except (OSError, HTTPException) as error:
            raise ValueError(f"{address} broke off its answer ({error!r})") from None


def told(url: str) -> dict[str, Any]:
    """What a server says of its policy. Raises ValueError."""
    return _object(url, ask(url, PATH))


def switch(url: str, asked: Switch) -> dict[str, Any]:
    """What it says after a switch. Raises ValueError with the server's reason."""
    return _object(url, ask(url, PATH, json.dumps(asked.body).encode()))


def _object(url: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "policy" not in found:
        raise ValueError(f"{base_of(url)}{PATH} answers no policy; is it a server that `lynx-moe serve` started?")
    return found


def _said(text: str) -> str:
    """The reason in an error's body: vLLM and SGLang each wrap it."""
    try:
        found = json.loads(text)
        text = found["error"]["message"] if "error" in found else found["detail"]
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(str(text).split())[:400]
