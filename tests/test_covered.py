"""The summary of a run says what this machine did not cover."""

from types import SimpleNamespace

from covered import not_covered


def test_every_reason_gets_a_line_with_its_number() -> None:
    skipped = [
        SimpleNamespace(longrepr=("a.py", 1, f"Skipped: {why}")) for why in ("needs AMX", "needs AMX", "no nixl")
    ]
    assert not_covered(skipped, has_vllm=True) == [
        "not covered on this machine: needs AMX (2 tests)",
        "not covered on this machine: no nixl (1 test)",
    ]
    (line,) = not_covered([], has_vllm=False)
    assert line.endswith("vLLM is not installed (all of tests/engines/vllm and tests/serving)")
    assert not_covered([], has_vllm=True) == []
