"""Memory: what is free, and what is refused before it is asked for."""

import re
from pathlib import Path

import pytest
import torch

from lynx_moe.lab.shared import memory
from lynx_moe.lab.shared.memory import GIB, allowed, refuse_above

CPU = torch.device("cpu")


def test_a_container_s_limit_counts_where_it_is_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "LIMITS", (tuple(map(str, files)),))
    monkeypatch.setattr(memory, "_available", lambda: 10 * GIB)
    assert memory.free(CPU) == 10 * GIB
    files[0].write_text("max\n")
    files[1].write_text(f"{GIB}\n")
    assert memory.free(CPU) == 10 * GIB
    files[0].write_text(f"{4 * GIB}\n")
    assert memory.free(CPU) == 3 * GIB
    assert allowed(CPU, None) == int(memory.SHARE * 3 * GIB)
    assert allowed(CPU, 0.5) == GIB // 2


def test_who_is_told_nothing_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIMITS", ())
    monkeypatch.setattr(memory, "_available", lambda: None)
    assert allowed(CPU, None) is None
    refuse_above(None, {"caches": 10**18}, "this", "lower that")
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="must be a number of GiB above 0"):
            allowed(CPU, wrong)


def test_a_refusal_names_the_parts_the_limit_and_what_helps() -> None:
    refuse_above(3 * GIB, {"caches": 2 * GIB, "logits": GIB}, "this", "lower that")
    says = "this would take about 3.5 GiB beside the model (caches 2.5, logits 1.0), and 3.0 may be used; lower that"
    with pytest.raises(ValueError, match=re.escape(says)):
        refuse_above(3 * GIB, {"caches": 5 * GIB // 2, "logits": GIB}, "this", "lower that")
