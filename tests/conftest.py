"""Which tests can run here, and at the end what this machine did not cover."""

import os
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores; read when torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

os.environ.pop("COLUMNS", None)  # what commands print does not hang on who runs the tests: xdist names 80 of them

import pytest
from covered import HAS_VLLM, ROOMS, WITHOUT_VLLM, not_covered

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if not HAS_VLLM and collection_path in [HERE / room for room in ROOMS] else None


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """What starts engines and servers comes first: such a file, begun last, would keep one process busy alone."""
    heavy = [HERE / room for room in ROOMS]
    items.sort(key=lambda item: not any(room in item.path.parents for room in heavy))
    if not HAS_VLLM:
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.skip(reason=WITHOUT_VLLM))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in not_covered(terminalreporter.stats.get("skipped", ())):
        terminalreporter.write_line(line)
