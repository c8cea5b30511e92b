"""The policy's routes stand behind SGLang's own check of keys."""

from typing import Any

import pytest
import sglang_here

pytestmark = pytest.mark.skipif(not sglang_here.HAS_SGLANG, reason=sglang_here.WITHOUT)


@pytest.mark.parametrize(
    ("keys", "sent", "codes"),
    [
        ((None, None), None, (404, 400)),
        (("mine", None), None, (401, 401)),
        (("mine", None), "mine", (404, 400)),
        (("mine", "operator"), "mine", (404, 401)),
        (("mine", "operator"), "operator", (401, 400)),
    ],
)
def test_keys_are_asked_for(keys: Any, sent: str | None, codes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """404 and 400 come from behind the check: there is no engine, and no JSON object was sent."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient
    from sglang.srt.utils.auth import add_api_key_middleware

    from lynx_moe.engines.sglang.front import asking, endpoint

    async def nobody(manager: Any, *spec: str) -> Any:
        raise asking.Refused("the server was started without lynx_moe")

    monkeypatch.setattr(asking, "told", nobody)
    monkeypatch.setattr(endpoint, "_manager", lambda: None)
    app = FastAPI()
    endpoint.attach(app)
    add_api_key_middleware(app, api_key=keys[0], admin_api_key=keys[1])
    headers = {} if sent is None else {"Authorization": f"Bearer {sent}"}
    client = TestClient(app)
    told = client.get(endpoint.PATH, headers=headers)
    switched = client.post(endpoint.PATH, headers=headers, content="{")
    assert (told.status_code, switched.status_code) == codes
