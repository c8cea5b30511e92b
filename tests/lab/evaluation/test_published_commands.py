"""The commands in docs/reference/evaluation.md for the paper's models: their options exist, and so do their tasks."""

import shlex
import subprocess
from typing import Any

import pytest
import typer
from places import REFERENCE

from lynx_moe.cli import app
from lynx_moe.lab.evaluation import harness
from lynx_moe.lab.evaluation import measure as evaluation
from lynx_moe.policies import make_policy

PAGE = REFERENCE / "evaluation.md"
MODELS = ("Mixtral-8x7B", "dbrx", "Qwen2-57B-A14B", "Qwen3-30B-A3B", "DeepSeek-Coder-V2", "Llama-4")
TASKS = (
    {"gsm8k", "humaneval", "mbpp", "minerva_math_algebra", "truthfulqa_gen", "wmt16-en-de"}
    | {"chartqa", "mmmu_val", "aime24", "gpqa_diamond_cot_zeroshot"}
)  # fmt: skip


@pytest.fixture(scope="module")
def commands() -> list[dict[str, Any]]:
    """What `lynx-moe eval` reads from each command, as the shell hands it over."""
    block = PAGE.read_text().split("## The paper's models and tasks")[1].split("```sh\n")[1].split("```")[0]
    script = 'lynx-moe() { printf "%q " "$@"; echo; }\n' + block
    done = subprocess.run(["bash", "-eu", "-c", script], capture_output=True, text=True, check=True)
    evaluate = typer.main.get_command(app).commands["eval"]  # type: ignore[attr-defined]
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert {words[0] for words in lines} == {"eval"}
    return [evaluate.make_context("eval", words[1:]).params for words in lines]


def test_every_model_of_the_paper_has_a_command_that_is_taken(commands: list[dict[str, Any]]) -> None:
    names = [params["model"].partition("/")[2] for params in commands]
    for name, start in zip(names, MODELS, strict=True):
        assert name.startswith(start)
    assert len({params["out"] for params in commands}) == len(commands)
    for params in commands:
        tasks, code = tuple(params["tasks"].split(",")), {"humaneval", "mbpp"}
        evaluation.Settings(model=params["model"], tasks=tasks, model_args=params["model_args"])
        assert params["allow_code"] == bool(code.intersection(tasks))
        assert [make_policy(text).name for text in params["policies"].split()] == ["vanilla", "lynx"]


def test_every_task_of_the_paper_is_run_and_the_harness_has_it(commands: list[dict[str, Any]]) -> None:
    named = {task for params in commands for task in params["tasks"].split(",")}
    assert named == TASKS
    assert named <= set(harness.task_manager(sorted(named)).all_tasks)
