"""SGLang in this process, where there is one. What needs it says so by its `pytestmark`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sglang_here

from lynx_moe.testbed import path

if sglang_here.HAS_SGLANG:
    sglang_here.prepare()


@pytest.fixture(scope="session")
def plain() -> list[list[int]]:
    """What SGLang answers without us, and without drafts."""
    script = Path(sglang_here.__file__).parent / "sglang_plain.py"
    line = [
        sys.executable,
        str(script),
        str(path("qwen3-moe")),
        json.dumps(sglang_here.PROMPTS),
        str(sglang_here.LENGTH),
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600)
    found = [text for text in done.stdout.splitlines() if text.startswith("ANSWERS ")]
    assert found, done.stderr[-3000:]
    answers: list[list[int]] = json.loads(found[0].removeprefix("ANSWERS "))
    return answers
