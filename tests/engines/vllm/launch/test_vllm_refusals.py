"""Why an engine does not start is the last line, wherever it was found out."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from lynx_moe.engines.vllm.launch import command, refusals, speculation
from lynx_moe.engines.vllm.launch.refusals import Refusal


@pytest.fixture(autouse=True)
def _place(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setenv(refusals.PLACE, str(tmp_path))


def failing(*_: Any) -> None:
    raise RuntimeError("Engine core initialization failed. See root cause above.")


def test_the_reason_of_an_engine_s_process_is_what_the_starting_one_raises() -> None:
    with pytest.raises(Refusal, match=r"^lynx_moe: k0=9 is too many$"), refusals.refusing():
        raise ValueError("k0=9 is too many")
    refusals.tell("lynx_moe: another worker's")  # the first one stays
    with pytest.raises(Refusal, match=r"^lynx_moe: k0=9 is too many$") as caught:
        refusals.wait_for_engine_startup(failing)
    assert caught.value.__suppress_context__
    with pytest.raises(RuntimeError, match="initialization failed"):  # it was told once
        refusals.wait_for_engine_startup(failing)


def test_a_reason_of_an_engine_before_is_forgotten_and_other_errors_stay_what_they_are(
    monkeypatch: Any, tmp_path: Any
) -> None:
    refusals.tell("lynx_moe: of the parent's engine")
    refusals.expect()
    assert refusals.heard() is None
    assert (tmp_path / refusals.FILE).read_text() == "lynx_moe: of the parent's engine"  # the parent may wait for it
    refusals.tell("lynx_moe: old")
    refusals.expect()
    with pytest.raises(RuntimeError, match="initialization failed"):
        refusals.wait_for_engine_startup(failing)
    with pytest.raises(KeyError), refusals.refusing():
        raise KeyError("not ours")
    assert refusals.wait_for_engine_startup(lambda *given: given, 1, 2) == (1, 2)


def test_without_a_place_nothing_is_told(monkeypatch: Any, tmp_path: Any) -> None:
    for place in (None, str(tmp_path / "gone")):
        monkeypatch.delenv(refusals.PLACE) if place is None else monkeypatch.setenv(refusals.PLACE, place)
        refusals.tell("lynx_moe: lost")
        assert refusals.heard() is None


def test_the_command_ends_in_that_line(monkeypatch: Any, capsys: Any) -> None:
    from vllm.entrypoints.cli import main as cli

    def serve() -> None:
        raise Refusal("lynx_moe: k0=9 is too many")

    monkeypatch.setattr(cli, "main", serve)
    monkeypatch.setattr(sys, "argv", ["vllm"])
    with pytest.raises(SystemExit) as caught:
        command.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "lynx-moe: error: lynx_moe: k0=9 is too many\n"


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("extract_hidden_states", "hands on each token as a draft"),
        ("custom_class", "drafts by a class of yours"),
        ("medusa", "drafts with a model of its own"),
        ("draft_model", "drafts with a model of its own"),
    ],
)
def test_a_way_of_drafting_is_refused_for_the_true_reason(method: str, why: str) -> None:
    reason = speculation.refusal(SimpleNamespace(method=method))
    assert reason is not None
    assert reason.startswith(f"speculative method '{method}' {why}")
    assert reason.endswith("use ngram, ngram_gpu, suffix, or start without speculative_config")


def test_vllm_knows_these_ways() -> None:
    from typing import get_args

    from vllm.config import speculative

    known = set(get_args(speculative.SpeculativeMethod))
    flat = {name for each in known for name in (get_args(each) or (each,))}
    assert {*speculation.WITHOUT_MODEL, *speculation.WHY} <= flat
    assert all(speculation.refusal(SimpleNamespace(method=name)) is None for name in speculation.WITHOUT_MODEL)
    assert speculation.refusal(None) is None
