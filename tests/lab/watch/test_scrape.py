"""A server's metrics over HTTP: every way to its address, and a true reason where there is nothing to show."""

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from expositions import metrics

from lynx_moe.lab.watch.fetch import is_local
from lynx_moe.lab.watch.scrape import scrape

PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def answering() -> Iterator[Any]:
    """A function that starts a server whose /metrics is the given text, and returns its port. Asked as a proxy, it
    answers 503."""
    servers = []

    def start(text: str, host: str = "127.0.0.1") -> int:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response({"/metrics": 200}.get(self.path, 503 if "://" in self.path else 404))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args: object) -> None:
                """Silence."""

        class Server(http.server.HTTPServer):
            address_family = 10 if ":" in host else 2

        server = Server((host, 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server.server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_every_way_to_name_the_address_works(answering: Any) -> None:
    address = f"127.0.0.1:{answering(metrics(1, 4, 3))}"
    for url in (address, f"http://{address}/", f"http://{address}/metrics"):
        assert scrape(url).total("steps_total") == 1


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.1.7", "0.0.0.0", "[::1]", "LOCALHOST"])
def test_a_proxy_in_the_environment_is_not_asked_for_this_machine(
    answering: Any, monkeypatch: pytest.MonkeyPatch, name: str, host: str
) -> None:
    try:
        port = answering(metrics(1, 4, 3), "::1" if host == "[::1]" else "0.0.0.0")
    except OSError:
        pytest.skip("this machine has no IPv6")
    monkeypatch.setenv(name, f"http://127.0.0.1:{answering('')}")
    assert scrape(f"{host}:{port}").total("steps_total") == 1


def test_a_proxy_is_asked_for_other_machines_and_named_where_it_refuses(
    answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{answering('')}")
    with pytest.raises(ValueError, match=r"answers 503 .*by the proxy of the environment") as refused:
        scrape("http://gpu.example:8000")
    assert "secret" not in str(refused.value)


def test_what_is_this_machine() -> None:
    for host in ("localhost.", "a.localhost", "[::1]", "[::]", "[::ffff:127.0.0.1]", "127.255.255.254"):
        assert is_local(f"http://{host}:8000/metrics"), host
    for host in ("localhost.example", "128.0.0.1", "10.0.0.1", "[fe80::1]", "gpu-1", "127.0.0.1.example", ""):
        assert not is_local(f"http://{host}:8000/metrics"), host


def test_what_cannot_be_shown_is_said_in_one_line_and_is_true(answering: Any) -> None:
    address = f"127.0.0.1:{answering('vllm:num_requests_running 1')}"
    with pytest.raises(ValueError, match="has no metrics of lynx-moe: the server runs without a policy, or with"):
        scrape(address)
    with pytest.raises(ValueError, match="answers 404 Not Found; is it the address of a vLLM server"):
        scrape(f"{address}/elsewhere")
    silent = f"127.0.0.1:{answering('lynx_moe_workers 0.0')}"
    with pytest.raises(ValueError, match=r"has no numbers of any worker: .*cannot write to the metrics directory"):
        scrape(silent)
    with pytest.raises(ValueError, match=r"cannot be read .*is the server up"):
        scrape("127.0.0.1:9")
