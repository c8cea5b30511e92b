"""What a run of the tests did not cover on this machine: the reasons of skipped tests, each with their number."""

import importlib.util
from collections import Counter
from collections.abc import Iterable
from typing import Any

WITHOUT_VLLM = "vLLM is not installed"
_vllm = importlib.util.find_spec("vllm")
HAS_VLLM = _vllm is not None and _vllm.origin is not None  # tests/engines/vllm can be imported by that name too
ROOMS = ("engines/vllm", "serving")  # all of these need vLLM; elsewhere the marker `vllm` says which tests do


def not_covered(reports: Iterable[Any], has_vllm: bool = HAS_VLLM) -> list[str]:
    """A line for each reason, from pytest's reports of skipped tests and files."""
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports)
    lines = [f"{reason} ({number} test{'s' * (number > 1)})" for reason, number in reasons.items()]
    if not has_vllm:
        lines.append(f"{WITHOUT_VLLM} (all of {' and '.join(f'tests/{room}' for room in ROOMS)})")
    return [f"not covered on this machine: {line}" for line in lines]
