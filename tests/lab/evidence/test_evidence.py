"""`lynx-moe evidence`: a list of commands that exist, run one after another, each once."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from lynx_moe.cli import app
from lynx_moe.lab.evidence import run as runs
from lynx_moe.lab.evidence.steps import steps
from lynx_moe.policies import make_policy

RESULTS = Path(__file__).parents[3] / "docs" / "results"
OF_TIME = {
    "cost.md",
    "disk.md",
    "doctor.md",
    "gpu.md",
    "load.md",
    "serving.md",
    "sglang.md",
    "training.md",
}  # no table of quality there, or one of servers, of which one lives in an environment of its own
STEPS = steps()
PLACES = {"out": "o", "carved": "c", "routes": "r.npz", "twins": "t"}


def asked(out: Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["evidence", "--out", str(out), *more])


def test_every_page_of_quality_has_a_step_and_no_name_is_there_twice() -> None:
    assert {step.page for step in STEPS} == {file.name for file in RESULTS.glob("*.md")} - OF_TIME
    assert len({step.name for step in STEPS}) == len(STEPS)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_command_of_the_list_is_understood(step: Any) -> None:
    root = typer.main.get_command(app)
    for command in step.commands:
        program, *words = shlex.split(command.format(**PLACES).partition(" > ")[0])
        if program == "python":
            assert (Path(__file__).parents[3] / words[0]).is_file()
            continue
        group: Any = root
        while hasattr(group, "commands"):
            group, words = group.commands[words[0]], words[1:]
        context = group.make_context(group.name, words)
        for spec in str(context.params.get("policies", "")).split():
            assert group.name in ("replay", "bakeoff") or make_policy(spec)  # these take other words too


def test_what_is_finished_stays_and_what_failed_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    bad = ["fidelity mixtral"]
    monkeypatch.setattr(runs, "run", lambda command: ran.append(command) or not any(b in command for b in bad))
    first = asked(tmp_path, "--only", "fidelity.md")
    assert "failed: fidelity of mixtral" in str(first.exception)
    assert [" ".join(command.split()[1:3]) for command in ran] == [
        "fidelity qwen3-moe", f"table {tmp_path}/qwen3-moe/fidelity/fidelity.jsonl", "fidelity mixtral"]  # fmt: skip
    bad.clear()
    ran.clear()
    again = asked(tmp_path, "--only", "fidelity.md")
    assert again.exit_code == 0, again.output
    assert [" ".join(command.split()[1:3]) for command in ran] == [
        "fidelity mixtral", f"table {tmp_path}/mixtral/fidelity/fidelity.jsonl"]  # fmt: skip
    assert "1 of 2: fidelity of qwen3-moe, for fidelity.md: done before" in again.output


def test_what_is_not_shipped_is_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(runs, "run", lambda command: bool(ran.append(command)) or True)
    shown = asked(tmp_path, "--only", "routes", "--routes", str(tmp_path / "none.npz"))
    assert f"left out: there is no {tmp_path / 'none.npz'}" in shown.output
    assert ran == []
    (tmp_path / "with space.npz").touch()
    asked(tmp_path, "--only", "routes", "--routes", str(tmp_path / "with space.npz"))
    assert len(ran) == 3
    assert shlex.split(ran[0])[2] == str(tmp_path / "with space.npz")


def test_the_list_says_hours_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "run", lambda command: pytest.fail("it ran"))
    shown = asked(tmp_path, "--list")
    assert shown.exit_code == 0
    assert f"1 of {len(STEPS)}: demo, for demo.md: about 3 min, with what follows" in shown.output
    assert "no step or page holds 'nothing'" in str(asked(tmp_path, "--only", "nothing").exception)


def test_a_command_s_words_go_into_its_file(tmp_path: Path) -> None:
    assert runs.run(f"lynx-moe policies > {tmp_path}/new/policies.txt")
    assert "priced" in (tmp_path / "new" / "policies.txt").read_text()
    assert not runs.run("lynx-moe nothing-like-it")
