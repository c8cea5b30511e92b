"""A base install, without any extra: it imports, lists policies, and every command works or says what it needs.

Run by the Python of that environment, from anywhere: `make test-base` does. That its lists name every command is
asserted in `tests/test_cli.py`, where no environment has to be made first.
"""

import contextlib
import importlib.util
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import lynx_moe
from lynx_moe import cli

FILE = "nowhere.json"
WORKS = {"policies": [], "dashboard": [], "evidence": ["--list"], "--help": []}
NEEDS = {  # the package that the line must name
    "serve": (["org/model"], "vllm"),
    "load": (["org/model", "--trace", FILE], "pip install"),
    "doctor": (["org/model"], "pip install"),
    "eval": (["org/model", "--tasks", "gsm8k"], "pip install"),
    "speculation": (["org/model", "--drafters", "none ngram"], "pip install"),
    "fidelity": (["org/model"], "pip install"),
    "tune": (["org/model"], "pip install"),
    "bakeoff": (["org/model"], "pip install"),
    "profile": (["org/model"], "pip install"),
    "calibrate": (["org/model"], "pip install"),
    "record": (["org/model"], "pip install"),
    "replay": ([FILE], "pip install"),
    "demo": ([], ""),
    "bench": ([], ""),
    "guard-cost": ([], ""),
    "top": (["http://127.0.0.1:9"], ""),
    "policy": (["http://127.0.0.1:9"], "cannot be reached"),
    "table": ([FILE], ""),
    "plot": ([FILE], ""),
    "testbed": (["train"], ""),
}


def run(name: str, args: list[str]) -> tuple[int, str, str]:
    """(exit code, what was printed, what went to stderr) of a command in this process."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["lynx-moe", name, *args]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        code: Any = 0
    except SystemExit as stopped:
        code = stopped.code
    finally:
        sys.argv = before
    return int(code or 0), out.getvalue(), err.getvalue()


def main() -> None:
    assert importlib.util.find_spec("transformers") is None, "this is no base install"
    spec = lynx_moe.RouterSpec(num_experts=16, top_k=4)
    routing = lynx_moe.make_policy("priced").decide(torch.randn(8, 16), spec)
    assert routing.ids.shape == (8, 4)
    for name, args in WORKS.items():
        code, out, err = run(name, args)
        assert code == 0, (name, err)
        assert out
    assert json.loads(run("dashboard", [])[1])
    for name, (args, says) in NEEDS.items():
        code, out, err = run(name, args)
        lines = err.strip().splitlines()
        assert code == 2, (name, code, out, err)
        assert len(lines) == 1, (name, err)
        assert lines[0].startswith("lynx-moe: error: "), (name, err)
        assert says in lines[0], (name, err)
        print(f"{name}: {lines[0]}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(Path(folder)):
        main()
