"""`bench --model`: a trained model's own routes, with few experts in memory."""

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lynx_moe.cli import app
from lynx_moe.lab.speed import trained
from lynx_moe.lab.speed.measure import NEW_TOKENS, PROMPT_TOKENS
from lynx_moe.testbed import path

LAYERS, E, EXPERT = 4, 64, 3 * 128 * 32 * 2


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_trained_model_is_timed_with_few_experts_in_memory(tmp_path: Path) -> None:
    arguments = ["bench", "--model", "qwen3-moe", "--batch-sizes", "4", "--rounds", "1", "--out", str(tmp_path / "out")]
    arguments += [
        "--experts-resident",
        "25%",
        "--experts-folder",
        str(tmp_path),
        "--policies",
        "vanilla priced:price=0.1",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out/speed.json").read_text())
    assert found["model"] == "qwen3-moe, 4 layers, trained, bfloat16, eager"
    assert (found["layers"], found["num_experts"], found["top_k"], found["gates"]) == (LAYERS, E, 8, "its own")
    vanilla, priced = found["summary"]
    assert vanilla["after"] == vanilla["before"] > priced["after"]
    assert 0 < priced["loads"] < vanilla["loads"] < vanilla["before"]
    assert vanilla["mib"] == pytest.approx(LAYERS * EXPERT * vanilla["loads"] / 2**20)


def test_prompts_are_the_beginnings_of_different_documents(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path("text"))
    data = path("text") / "held_out.jsonl"
    draw = trained.drawing(tokenizer, str(data), PROMPT_TOKENS, NEW_TOKENS)
    prompts = draw(8, random.Random(0))
    assert {len(prompt) for prompt in prompts} == {PROMPT_TOKENS}
    assert len({tuple(prompt) for prompt in prompts}) == 8
    assert draw(8, random.Random(0)) == prompts
    assert draw(8, random.Random(1)) != prompts
    text = data.read_text()
    assert all(json.dumps(tokenizer.decode(prompt[1:-1]), ensure_ascii=False)[1:-1] in text for prompt in prompts)
    with pytest.raises(ValueError, match=r"batches of 201 need as many documents, and .* has \d+ of use"):
        draw(201, random.Random(0))
    tasks = trained.drawing(transformers.AutoTokenizer.from_pretrained(path("qwen3-moe")), "testbed", 16, 25)
    assert all(tasks(16, random.Random(0)))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--drafts", "0.5", "--model", "text"], "--drafts are timed on a published shape; leave out --model"),
        (["--layers", "2", "--model", "text"], "--layers is for published shapes; 'text' has its own"),
        (["--data", "my.jsonl"], "--data 'my.jsonl' is for a trained model: a shape has random weights"),
    ],
)
def test_what_a_model_or_a_shape_has_not_is_refused(args: list[str], says: str) -> None:
    done = CliRunner().invoke(app, ["bench", *args])
    assert done.exit_code
    assert says in str(done.exception)
