"""The same documents through vLLM: what `lynx-moe fidelity` says there is what it says on transformers."""

import os
from pathlib import Path
from typing import Any

import pytest
from places import MODELS
from typer.testing import CliRunner

from lynx_moe.cli import app
from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.lab.fidelity import served

POLICIES = ("vanilla", "priced", "random:num_keep=16")
GIVEN: dict[str, Any] = {
    "model": str(MODELS / "qwen3-moe"),
    "batch_sizes": (4,),
    "mixes": ("mixed",),
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def settings() -> fidelity.Settings:
    return fidelity.Settings(**GIVEN, num_sequences=28, split="test")


@pytest.fixture(scope="module")
def local(settings: fidelity.Settings, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    whole = fidelity.measure(settings, POLICIES, tmp_path_factory.mktemp("local") / "fidelity.jsonl")
    return list(whole["results"])


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Line by line; float32 sums differ in their last bits, and KL is a mean of few large ones."""
    for one, other in zip(found, expected, strict=True):
        assert {key: one[key] for key in ("policy", "spec", "groups", "num_tokens")} == {
            key: other[key] for key in ("policy", "spec", "groups", "num_tokens")
        }
        assert one["kl"] == pytest.approx(other["kl"], rel=0.1, abs=1e-6)
        assert one["gain"] == pytest.approx(other["gain"], rel=0.1, abs=1e-5)
        assert one["exact"] == pytest.approx(other["exact"], rel=1e-3, abs=1e-6)
        assert one["before_by_layer"] == pytest.approx(other["before_by_layer"], abs=0.02)
        assert one["after_by_layer"] == pytest.approx(other["after_by_layer"], rel=0.02)
    assert found[0]["kl"] < 1e-9
    assert found[2]["kl"] > 10 * found[1]["kl"] > 0


@pytest.mark.vllm
def test_vllm_says_what_transformers_says(settings: Any, local: Any, tmp_path: Path) -> None:
    whole = served.measure(settings, POLICIES, tmp_path / "fidelity.jsonl")
    assert whole["settings"]["engine"] == "vllm"
    same(whole["results"], local)
    again = served.measure(settings, POLICIES, tmp_path / "fidelity.jsonl")  # all is there
    assert again["results"] == whole["results"]


@pytest.mark.vllm
def test_two_ranks_say_it_too(settings: Any, local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "|".join(str(cores[rank % len(cores)]) for rank in range(2)))
    given = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    whole = served.measure(settings, POLICIES, tmp_path / "fidelity.jsonl", engine_args=given)
    same(whole["results"], local)


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"caches": ("own", "exact")}, "has own only"),
        ({"prefix": 2000, "steps": 2000, "data": "book"}, "lower --prefix"),
    ],
)
def test_what_vllm_cannot_do_is_one_clear_line(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    if "data" in change:
        (tmp_path / "book.txt").write_text("All work and no play makes a dull book. " * 2000)
        change |= {"data": str(tmp_path / "book.txt"), "num_sequences": 4}
    with pytest.raises(ValueError, match=says):
        served.measure(fidelity.Settings(**{**GIVEN, **change}), POLICIES, tmp_path / "fidelity.jsonl")


@pytest.mark.parametrize("args", [("--engine", "vllm", "--tiers", "0.01 exact"), ("--model-args", "dtype=float32")])
def test_options_of_the_other_engine_are_refused(args: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["fidelity", str(MODELS / "qwen3-moe"), *args])
    assert "--tiers is measured on transformers alone" in str(result.exception)


@pytest.mark.parametrize("command", [("fidelity", "--engine", "vllm"), ("tune",)])
def test_what_a_measurement_sets_itself_is_not_lost_in_silence(command: tuple[str, ...]) -> None:
    given = '{"additional_config": {"lynx_moe": {"experts_resident": 16}}}'
    done = CliRunner().invoke(app, [command[0], "qwen3-moe", *command[1:], "--model-args", given])
    assert done.exit_code
    assert "--model-args cannot set additional_config: it is set here" in str(done.exception)
