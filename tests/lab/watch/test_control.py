"""`lynx-moe policy` against a small HTTP server: what it sends, what it prints, what it makes of answers."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from lynx_moe.cli import app

TOLD = {"policy": "priced:price=0.1", "max_kl": None, "slo_tpot_ms": 25.0, "workers": 2, "agree": True}


class Handler(BaseHTTPRequestHandler):
    """Answers as it is told, and keeps what it got: (path, key, body)."""

    got: ClassVar[list[tuple[str, str | None, Any]]] = []
    status, answer = 200, json.dumps(TOLD)

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.got.append((self.path, self.headers.get("Authorization"), body))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.answer.encode())

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Handler, "got", [])
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(*args: str) -> tuple[list[str], str]:
    """(lines that were printed, the error)."""
    done = CliRunner().invoke(app, ["policy", *args])
    return done.output.splitlines(), str(done.exception or "")


def test_without_a_word_it_only_asks(url: str) -> None:
    printed, error = run(url)
    assert not error
    assert printed == ["policy       priced:price=0.1", "max_kl       off", "slo_tpot_ms  25.0"]
    assert Handler.got == [("/lynx_moe/policy", None, None)]


def test_what_is_named_is_sent_and_nothing_else(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "open-sesame")
    run(url, "lynx")
    run(url, "--slo-tpot-ms", "off", "--max-kl", "0.01")
    run(url, "priced", "--slo-tpot-ms", "40")
    assert [body for _, _, body in Handler.got] == [
        {"policy": "lynx"},
        {"max_kl": 0.01, "slo_tpot_ms": None},
        {"policy": "priced", "slo_tpot_ms": 40.0},
    ]
    assert {key for _, key, _ in Handler.got} == {"Bearer open-sesame"}


def test_workers_that_differ_are_told_of_and_goals_that_a_server_has_none_of_are_not(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "answer", json.dumps({"policy": "lynx", "workers": 2, "agree": False}))
    printed, _ = run(url)
    assert printed[0] == "policy       lynx"
    assert printed[1:] == ["The 2 workers do not all say the same; this is the first one's answer."]


@pytest.mark.parametrize(
    ("status", "answer", "reason"),
    [
        (400, '{"error": {"message": "max_kl=2 must be\\n less"}}', "answers 400: max_kl=2 must be less"),
        (409, '{"detail": "cannot"}', "answers 409: cannot"),
        (401, '{"error": "Unauthorized"}', "Unauthorized.*VLLM_API_KEY holds the key that is sent"),
        (404, "<html>no</html>", "answers 404: <html>no</html>"),
        (200, "[]", "answers no policy; is it a server that `lynx-moe serve` started"),
        (200, "<html>", "answers no policy"),
    ],
)
def test_other_answers_are_one_line(
    url: str, monkeypatch: pytest.MonkeyPatch, status: int, answer: str, reason: str
) -> None:
    monkeypatch.setattr(Handler, "status", status)
    monkeypatch.setattr(Handler, "answer", answer)
    _, error = run(url, "lynx")
    assert len(error.splitlines()) == 1
    with pytest.raises(ValueError, match=reason):
        raise ValueError(error)


def test_what_is_no_number_is_not_sent(url: str) -> None:
    assert run(url, "--max-kl", "low")[1] == "--max-kl 'low' must be a number, or off to turn it off"
    assert not Handler.got
    assert "cannot be reached" in run("127.0.0.1:9")[1]
