"""`lynx-moe tune` on a trained model: what it chooses, how it goes on where it was stopped, that a server takes it."""

import json

import pytest
from places import MODELS
from rich.console import Console
from tiny_vllm import engine
from typer.testing import CliRunner

from lynx_moe.cli import app
from lynx_moe.control.tuned import Tuned
from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.lab.shared import tables
from lynx_moe.lab.tune import measure, show

MODEL = str(MODELS / "qwen3-moe")
DECODE = fidelity.Settings(model=MODEL, batch_sizes=(4,), mixes=("mixed",), num_sequences=28)
SETTINGS = measure.Settings(decode=DECODE, policies=("priced", "random:num_keep=16"), max_kl=0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return measure.measure(SETTINGS, tmp_path_factory.mktemp("tune") / "tune.jsonl")


@pytest.mark.vllm
def test_it_chooses_what_holds_the_bound_on_documents_of_both_splits(whole):
    (choice,) = [line for line in whole["results"] if line["kind"] == "choice"]
    assert choice["batch"] == "2-4"
    assert choice["policy"].startswith("priced")
    assert choice["tune"]["kl_interval"][1] <= 0.01
    assert 0 < choice["test"]["kl"] <= 0.01
    assert choice["test"]["after"] < 0.95 * choice["test"]["before"]
    random = [line for line in whole["results"] if line.get("policy", "").startswith("random")]
    assert [line["split"] for line in random] == ["tune"]  # denied there, and not asked again


@pytest.mark.vllm
def test_a_run_that_was_stopped_goes_on_and_ends_alike(whole, tmp_path, capfd):
    path = tmp_path / "tune.jsonl"
    first = {key: value for key, value in whole.items() if key != "results"}
    kept = [line for line in whole["results"] if line["kind"] != "choice"][:-2]
    path.write_text("".join(json.dumps(line) + "\n" for line in [first, *kept]))
    again = measure.measure(SETTINGS, path)
    assert again["results"][: len(kept)] == kept
    said = capfd.readouterr().out.splitlines()
    for line in again["results"][len(kept) : -1]:
        what = "choose" if line["split"] == "tune" else "verify"
        heard = said.index(f"batches of 4, documents to {what} on: {line['policy']}")
        assert any(after.startswith(f"  {line['policy']}: {1000 * line['kl']:.3g} mnats [") for after in said[heard:])
    assert measure.measure(SETTINGS, path)["results"] == again["results"]  # all is there
    assert show.rows(again)[0][:3] == show.rows(whole)[0][:3]


@pytest.mark.vllm
def test_a_terminal_of_80_columns_cuts_nothing(whole):
    (choice,) = [line for line in whole["results"] if line["kind"] == "choice"]
    with (console := Console(width=80, force_terminal=True, color_system=None)).capture() as caught:
        tables.show("title", show.HEAD, show.rows(whole), console, show.CAPTION)
    name, price = choice["policy"].split(":")
    low, high = (f"{1000 * edge:.3g}" for edge in choice["test"]["kl_interval"])
    for whole_cell in (f"{name}:", price, f"[{low}, {high}]", f"n = {choice['test']['num_tokens']}", show.CAPTION):
        assert whole_cell in caught.get()


@pytest.mark.vllm
def test_the_command_that_it_ends_with_can_be_typed(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "measure", lambda *given, **named: whole)
    said = CliRunner().invoke(app, ["tune", "qwen3-moe", "--out", str(tmp_path)]).output
    assert f"lynx-moe serve {MODEL} --tuned {tmp_path / 'tuned.json'}" in said


@pytest.mark.vllm
def test_a_server_takes_the_file(whole, tmp_path):
    file = show.write(whole, tmp_path / "tuned.json")
    tuned = Tuned.of(json.loads(file.read_text()))
    assert tuned.model["name"] == "qwen3-moe"
    assert tuned.about["verified"]["2-4"]["kl"] <= 0.01
    with engine(MODEL, additional_config={"lynx_moe": {"tuned": str(file), "shadow": 0}}) as llm:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=4, ignore_eos=True, detokenize=False)
        llm.generate([{"prompt_token_ids": [5, 6, 7]}] * 4, params, use_tqdm=False)
        (one,) = lynx_vllm.stats().tuned["batches"]
        assert (one["batch"], one["policy"], one["steps"]) == ("2-4", tuned.batches["2-4"], 3)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--concurrency", "1,3,4"], "name one size of each group"),
        (["--concurrency", "x"], "--concurrency 'x' must be whole numbers"),
        (["--max-kl", "0"], "--max-kl 0.0 must be a number of nats above 0"),
        (["--max-kl", "nan"], "--max-kl nan must be"),
        (["--policies", "priced priced"], "each of them once"),
        (["--policies", "prized"], "did you mean 'priced'"),
    ],
)
def test_bad_options_are_one_line(args, says):
    result = CliRunner().invoke(app, ["tune", MODEL, *args])
    assert says in str(result.exception)
