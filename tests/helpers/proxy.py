"""Prefill and decode apart: the little proxy of vLLM's own example. A request goes to the prefill server with one token
to generate, then to the decode server, with what the first one says about where the prompt's KV is."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PREFILL = {"max_tokens": 1, "stream": False, "kv_transfer_params": {"do_remote_decode": True}}


@contextmanager
def proxy(prefill: str, decode: str) -> Iterator[str]:
    """The base URL of a proxy before two servers. Only the decode server hears of a request's wishes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            plain = {name: value for name, value in asked.items() if name != "vllm_xargs"}
            status, answer = post(prefill + self.path, plain | PREFILL)
            if status == 200:
                where = {"kv_transfer_params": answer.get("kv_transfer_params")}
                status, answer = post(decode + self.path, asked | where)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """No line per request."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def post(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """(HTTP status, what was answered)."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
