"""The examples run as a user would run them: each as a process of its own, the two that talk to a server to one."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from places import ROOT
from running import ENV, free_port

EXAMPLES = ROOT / "examples"
ONE_THREAD = {**ENV, "OMP_NUM_THREADS": "1"}  # tiny models gain nothing from more
sys.path.append(str(EXAMPLES))
import server_and_client  # noqa: E402


def run(name: str, *args: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=ONE_THREAD, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server, started by the example's own function."""
    os.environ.update({name: ENV[name] for name in ("HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE", "VLLM_NO_USAGE_STATS")})
    with server_and_client.server(free_port()) as address:
        yield address


def saved(line: str) -> bool:
    """Whether a line such as `...: 47.0 -> 23.1 ...` says fewer after than before."""
    before, _, after = line.rpartition(": ")[2].partition(" -> ")
    return 0 < float(after.split()[0]) < float(before)


def test_every_example_is_run_here_and_listed() -> None:
    names = {file.name for file in EXAMPLES.glob("*.py")}
    here = (ROOT / "tests/test_examples.py").read_text()
    listed = (EXAMPLES / "README.md").read_text()
    assert len(names) == 5
    assert all(f'run("{name}"' in here and f"]({name})" in listed for name in names)


@pytest.mark.vllm
def test_offline_vllm() -> None:
    out = run("offline_vllm.py").splitlines()
    (experts,) = [line for line in out if line.startswith("distinct experts")]
    assert saved(experts)
    assert any(line.startswith("answers that are the same") for line in out)


def test_transformers_apply() -> None:
    out = run("transformers_apply.py").splitlines()
    assert [line.split(": ")[0] for line in out] == ["priced", "priced:price=0.1", "lynx"]
    assert all(saved(line) for line in out)


def test_own_policy() -> None:
    out = run("own_policy.py").splitlines()
    assert len(out) == 3
    assert all(saved(line.partition(" experts")[0]) for line in out)


@pytest.mark.vllm
def test_server_and_client_then_read_metrics(url: str) -> None:
    asked = run("server_and_client.py", url)
    assert all(f"{wish}: " in asked for wish in ("(the server decides)", "exact", "fast", "oea:k0=3"))
    assert "oea:k0=99: 400" in asked
    seen = run("read_metrics.py", url)
    assert "policy: priced" in seen
    rows = {line.split()[1].rstrip(":"): int(line.split()[2]) for line in seen.splitlines() if line.startswith("rows")}
    assert all(rows[handling] > 0 for handling in ("remappable", "exact", "bypassed"))
