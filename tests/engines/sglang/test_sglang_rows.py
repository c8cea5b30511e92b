"""Which rows of SGLang's forward batches may be remapped, by its own forward mode."""

from types import SimpleNamespace
from typing import Any

import pytest

from lynx_moe.engines.sglang.step import rows


def batch(mode: str, lengths: list[int] | None = None, cached: list[int] | None = None, tokens: int = 0) -> Any:
    return SimpleNamespace(
        forward_mode=SimpleNamespace(name=mode),
        extend_seq_lens_cpu=lengths,
        extend_prefix_lens_cpu=cached,
        input_ids=range(tokens),
    )


@pytest.mark.parametrize(
    ("given", "prompts", "past", "scheduled"),
    [
        (batch("DECODE"), [3, 7], [True, True], [1, 1]),
        (batch("EXTEND", [3, 7], [0, 0]), [3, 7], [False, False], [3, 7]),
        (batch("EXTEND", [1], [8]), [4], [False], [1]),  # what a retracted request computes again
        (batch("MIXED", [5, 1, 1, 1], [0, 9, 4, 5]), [5, 4, 5, 5], [False, True, False, True], [5, 1, 1, 1]),
        (batch("DLLM_EXTEND", [4], [9]), [2], [False], [4]),
    ],
)
def test_rows_by_forward_mode(given: Any, prompts: list[int], past: list[bool], scheduled: list[int]) -> None:
    found = rows.of(given, prompts)
    assert found is not None
    assert [part.tolist() for part in found] == [past, scheduled, [0] * len(prompts)]


@pytest.mark.parametrize(("tokens", "drafts"), [(8, 3), (24, 11), (2, 0)])
def test_rows_that_verify_are_each_request_s_next_token_and_its_drafts(tokens: int, drafts: int) -> None:
    """The lengths of its last prefill stay on SGLang's batch, and say nothing of these rows."""
    found = rows.of(batch("TARGET_VERIFY", [3, 7], [0, 0], tokens), [3, 7])
    assert found is not None
    assert [part.tolist() for part in found] == [[True, True], [1 + drafts] * 2, [drafts] * 2]


@pytest.mark.parametrize(("mode", "prompts"), [("IDLE", []), ("IDLE", [3]), ("DECODE", []), ("PREBUILT", [3])])
def test_nothing_is_known_of_idle_passes_and_of_those_without_requests(mode: str, prompts: list[int]) -> None:
    assert rows.of(batch(mode), prompts) is None


def test_rows_that_are_not_equally_many_for_each_request_are_nobody_s() -> None:
    assert rows.of(batch("TARGET_VERIFY", tokens=7), [3, 7]) is None
