"""Why an engine does not start is the last line, wherever it was found out."""

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from lynx_moe.engines.shared import refusals
from lynx_moe.engines.shared.refusals import Refusal
from lynx_moe.engines.vllm import plugin
from lynx_moe.engines.vllm.launch import command, speculation, startup


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
        startup.wait_for_engine_startup(failing)
    assert caught.value.__suppress_context__
    with pytest.raises(RuntimeError, match="initialization failed"):  # it was told once
        startup.wait_for_engine_startup(failing)


def test_ray_s_workers_get_our_variables_beside_those_of_the_user_s_prefixes(monkeypatch: Any) -> None:
    from vllm.ray.ray_env import get_env_vars_to_copy

    ours = {"LYNX_MOE_METRICS_DIR", refusals.PLACE}
    for name in (*ours, "MINE_A"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv(plugin.RAY_PREFIXES, "MINE_")
    assert not ours & get_env_vars_to_copy()
    for _ in range(2):
        plugin._hand_on()
    assert {*ours, "MINE_A"} <= get_env_vars_to_copy()
    assert os.environ[plugin.RAY_PREFIXES] == "MINE_,LYNX_MOE_"


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
        startup.wait_for_engine_startup(failing)
    with pytest.raises(KeyError), refusals.refusing():
        raise KeyError("not ours")
    assert startup.wait_for_engine_startup(lambda *given: given, 1, 2) == (1, 2)


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
        ("medusa", "drafts with heads of its own: it was never run beside remapping"),
        ("dflash", "drafts a block at once: it was never run"),
        ("dspark", "drafts a block at once and may size what is verified"),
        ("mlp_speculator", "has no proposer in vLLM's V1 engine"),
        ("tomorrow_s", "is not known here"),
    ],
)
def test_a_way_of_drafting_is_refused_for_the_true_reason(method: str, why: str) -> None:
    reason = speculation.refusal(SimpleNamespace(method=method), "exact")
    assert reason is not None
    assert reason.startswith(f"speculative method '{method}' {why}")
    allowed = "ngram, ngram_gpu, suffix, draft_model, mtp, eagle, eagle3"
    assert reason.endswith(f"use {allowed}, or start without speculative_config")


def test_vllm_knows_these_ways() -> None:
    from typing import get_args

    from vllm.config import speculative

    known = set(get_args(speculative.SpeculativeMethod))
    flat = {name for each in known for name in (get_args(each) or (each,))}
    assert {*speculation.METHODS, *speculation.WHY} <= flat
    assert all(speculation.refusal(SimpleNamespace(method=name), "exact") is None for name in speculation.METHODS)
    assert speculation.refusal(None, "exact") is None


def test_vllm_has_no_proposer_for_what_is_said_to_have_none() -> None:
    import inspect

    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    made = inspect.getsource(GPUModelRunner.__init__)
    assert "Unknown speculative decoding method" in made
    assert "mlp_speculator" not in made


@pytest.mark.parametrize(
    ("method", "verify", "why"),
    [
        (None, "remap", "verify='remap' is about drafts, and this engine makes none"),
        (None, "draft", "verify='draft' is about drafts, and this engine makes none"),
        ("ngram", "draft", "and 'ngram' drafts without one; use 'exact' or 'remap'"),
    ],
)
def test_a_verification_that_would_do_nothing_is_refused(method: str | None, verify: str, why: str) -> None:
    reason = speculation.refusal(SimpleNamespace(method=method) if method else None, verify)
    assert reason is not None
    assert why in reason
    assert speculation.refusal(SimpleNamespace(method="draft_model"), verify) is None


def vocabulary(folder: Any, tokens: list[str], *, scores: bool = False) -> str:
    numbers = {token: number for number, token in enumerate(tokens)}
    found = [[token, 0.5] for token in tokens] if scores else numbers
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": found}}), encoding="utf-8")
    return str(folder)


def test_a_drafter_of_another_vocabulary_is_refused_in_one_line(tmp_path: Any) -> None:
    words = [f"w{number}" for number in range(50)]
    target = vocabulary(tmp_path / "target", words)
    renamed = vocabulary(tmp_path / "renamed", [*words[:48], "other", "more"], scores=True)
    shifted = vocabulary(tmp_path / "shifted", ["first", *words])
    longer = vocabulary(tmp_path / "longer", [*words, *(f"x{number}" for number in range(20))])
    (tmp_path / "none").mkdir()
    for fine in (target, renamed, str(tmp_path / "none"), "org/elsewhere"):
        speculation.check_vocabulary(target, {"model": fine, "num_speculative_tokens": 2})
    for bad in (shifted, longer):
        with pytest.raises(ValueError, match=r"cannot draft for .*: of 50 tokens \d+ have the same number") as caught:
            speculation.check_vocabulary(target, {"model": bad, "method": "draft_model"})
        assert "\n" not in str(caught.value)
        for given in (None, {"method": "ngram"}, {"model": bad, "method": "eagle"}, {"model": bad, "method": "mtp"}):
            speculation.check_vocabulary(target, given)
        speculation.check_vocabulary(target, {"model": bad, "use_heterogeneous_vocab": True})
    given = SimpleNamespace(model=target, speculative_config={"model": shifted}, additional_config={})
    assert plugin._create_engine_config(lambda _: SimpleNamespace(additional_config={}), given)  # vLLM's own
    given.additional_config = {"lynx_moe": {"policy": "lynx"}}
    with pytest.raises(Refusal, match=r"^lynx_moe: .*shifted cannot draft for"):
        plugin._create_engine_config(failing, given)
    with pytest.raises(ValueError, match="does not exist"):
        speculation.check_vocabulary(target, {"model": str(tmp_path / "nowhere" / "at" / "all")})
