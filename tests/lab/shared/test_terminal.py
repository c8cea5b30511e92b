"""What commands print: whole lines wherever nobody reads it on a terminal."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.panel import Panel
from typer.testing import CliRunner

import lynx_moe
from lynx_moe.cli import app
from lynx_moe.lab.shared import tables, terminal
from lynx_moe.policies import POLICIES

ROOT = Path(lynx_moe.__file__).parent
LONG = "priced:price=0.03,data=/a/long/folder/that/nobody/would/shorten/for/a/table/model-calibration.safetensors"


def calls(path: Path) -> set[str]:
    """The names of all that a file calls."""
    found = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return {getattr(called, "id", getattr(called, "attr", "")) for called in found}


def test_there_is_no_other_console() -> None:
    """A `Console()` of rich's is 80 columns wide in a pipe, and cuts what is longer."""
    assert [path.name for path in ROOT.rglob("*.py") if "Console" in calls(path)] == ["terminal.py"]


def test_a_piped_table_has_a_line_per_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    cells = ("16", "mixed", LONG.replace(":", ":\n"), *["1234.5\n[1000.0, 2000.0]"] * 4)
    tables.show("a title " * 20, tables.FIDELITY_HEAD, [cells] * 2, terminal.console())
    title, *rows = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert title.strip() == ("a title " * 20).strip()
    assert sum(LONG in row and row.count("1234.5 [1000.0, 2000.0]") == 4 for row in rows) == 2
    assert max(map(len, rows)) < 400
    assert len(rows) == 5  # head, rule, two rows, caption


def test_a_title_longer_than_its_table_is_one_line_and_is_no_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    title = "A decision: one layer, 16 rows, median [quartiles], " + "and more " * 10
    tables.show(title, ("a", "b"), [("1", "2")], terminal.console(), "[95 % intervals], in brackets")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert title.rstrip() in lines
    assert "[95 % intervals], in brackets" in lines


def test_who_says_a_width_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert terminal.console().width == 60
    monkeypatch.delenv("COLUMNS")
    assert terminal.console().width == terminal.WIDE


def test_what_fills_a_terminal_is_as_wide_as_its_text_elsewhere() -> None:
    with (wide := Console(width=terminal.WIDE, force_terminal=False)).capture() as caught:
        wide.print(terminal.fitted(wide, Panel("some words")))
    assert caught.get().splitlines()[0] == "╭────────────╮"
    with (seen := Console(width=40, force_terminal=True, color_system=None)).capture() as caught:
        seen.print(terminal.fitted(seen, Panel("some words")))
    assert len(caught.get().splitlines()[0]) == 40


def test_the_list_of_policies_has_a_line_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    shown = CliRunner().invoke(app, ["policies"]).output
    for name, policy in POLICIES.items():
        assert any(line.split()[:1] == [name] and policy.source in line for line in shown.splitlines()), name


def test_a_command_in_a_pipe_prints_whole_lines() -> None:
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "lynx_moe.cli", "policies"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=env).stdout
    assert any(len(line) > 100 for line in shown.splitlines())
