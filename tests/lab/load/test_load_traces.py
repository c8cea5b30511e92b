"""Traces: what is read, scaled and written, and what is refused with the number of its line."""

import gzip
import json

import pytest

from lynx_moe.lab.load import trace
from lynx_moe.lab.load.trace import BURST, TIMED, Request, Scale

ROWS = [
    {"timestamp": 500, "input_length": 1000, "output_length": 100, "hash_ids": [7, 8]},
    {"timestamp": 1500, "input_length": 600, "output_length": 50, "hash_ids": [7, 9]},
    {"timestamp": 1500, "input_length": 9, "output_length": 1},
]


def timed(folder, rows, name="trace.jsonl"):
    path = folder / name
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_a_timed_trace_begins_at_0_and_is_scaled(name, tmp_path):
    found = trace.read(timed(tmp_path, ROWS, name), TIMED, Scale(0.1, 0.5, 100))
    assert found == [Request(0.0, 100, 50, (7, 8)), Request(1.0, 60, 25, (7, 9)), Request(1.0, 1, 1, ())]
    assert trace.rate(found) == pytest.approx(2.0)


def test_only_the_first_requests_are_read(tmp_path):
    assert len(trace.read(timed(tmp_path, [*ROWS, "not json"]), TIMED, Scale(requests=2))) == 2


def test_what_is_written_is_what_the_client_reads(tmp_path):
    """Blocks shrink with the prompts, so what two prompts share keeps its part of them; who names no blocks shares
    nothing."""
    scale = Scale(0.1, 1.0, 100)
    requests = trace.read(timed(tmp_path, ROWS), TIMED, scale)
    block = trace.write(requests, scale, tmp_path / "out.jsonl")
    assert block == 51
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["input_length"] for row in rows] == [100, 60, 1]
    assert all(len(row["hash_ids"]) * block >= row["input_length"] for row in rows)
    assert rows[0]["hash_ids"] == [7, 8]
    assert not set(rows[2]["hash_ids"]) & {7, 8, 9}


@pytest.mark.vllm
def test_the_client_s_own_reader_gives_prompts_of_these_lengths(tmp_path):
    """vLLM's class on what is written, with a tokenizer: every prompt has its length, and shares its beginning."""
    from transformers import AutoTokenizer
    from vllm.benchmarks.datasets.datasets import TimedTrace

    from lynx_moe.testbed import path as model

    scale = Scale(0.1, 1.0, 100)
    requests = trace.read(timed(tmp_path, ROWS), TIMED, scale)
    block = trace.write(requests, scale, tmp_path / "out.jsonl")
    labels = {f"timed_trace_label_{name}": name for name in ("timestamp", "input_length", "output_length", "hash_ids")}
    reader = TimedTrace(dataset_path=str(tmp_path / "out.jsonl"), timed_trace_chunk_hash_size=block, **labels)
    samples = reader.sample(AutoTokenizer.from_pretrained(model("qwen3-moe")), 3)
    assert [sample.prompt_len for sample in samples] == [100, 60, 1]
    assert [len(sample.prompt) for sample in samples] == [100, 60, 1]
    assert samples[0].prompt[:51] == samples[1].prompt[:51] != samples[0].prompt[49:100]


def test_burstgpt_s_failed_requests_are_left_out(tmp_path):
    path = tmp_path / "burst.csv"
    head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    path.write_text(head + "5,ChatGPT,472,18,490,Conversation log\n6,GPT-4,9,0,9,API log\n7.5,GPT-4,20,4,24,API log\n")
    assert trace.read(path, BURST, Scale()) == [Request(0.0, 472, 18, ()), Request(2.5, 20, 4, ())]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], {"timestamp": 1, "input_length": 3}], "line 2: it has no 'output_length'"),
        ([ROWS[1], ROWS[0]], "line 2: its time 0.5 s lies before that of the request above"),
        ([ROWS[0], "{"], "line 2: no JSON"),
        ([ROWS[0], "", "[1]"], "line 3: a request is an object"),
        ([{**ROWS[0], "input_length": "many"}], "line 1: input_length 'many' is no number"),
        ([{**ROWS[0], "output_length": 0}], "line 1: output_length 0 must be 1 or more"),
        ([{**ROWS[0], "timestamp": float("nan")}], "line 1: timestamp nan must be 0 or more"),
        ([{**ROWS[0], "hash_ids": 3}], "line 1: "),
        ([ROWS[0]], "has 1 requests; a load needs 2 or more"),
        ([], "has 0 requests"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_line(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message) as refused:
        trace.read(timed(tmp_path, rows), TIMED, Scale())
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_is_no_gzip_is_one_line(tmp_path):
    (tmp_path / "x.gz").write_text("plain")
    for name in ("nowhere.jsonl", "x.gz"):
        with pytest.raises(ValueError, match="cannot be read"):
            trace.read(tmp_path / name, TIMED, Scale())


def test_burstgpt_without_its_columns(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="line 2: it has no 'Timestamp'"):
        trace.read(tmp_path / "x.csv", BURST, Scale())


@pytest.mark.parametrize("scale", [(0.0, 1.0, 9), (1.5, 1.0, 9), (1.0, -1.0, 9), (1.0, 1.0, 1)])
def test_a_bad_scale(scale):
    with pytest.raises(ValueError, match=r"--(prompt-scale|requests)"):
        Scale(*scale)


def test_all_at_once_has_no_rate():
    with pytest.raises(ValueError, match="at the same moment"):
        trace.rate([Request(0.0, 1, 1, ()), Request(0.0, 1, 1, ())])


def test_a_request_that_the_model_cannot_take_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"request 2: 60 tokens of prompt and 50 .* the 100 that the model takes; lower"
    ):
        trace.longest([Request(0, 9, 1, ()), Request(0, 60, 50, ())], 100, tmp_path / "t")


def test_sharegpt_is_cut_to_its_share(tmp_path):
    source, out = tmp_path / "share.json", tmp_path / "out" / "share.json"
    turns = [{"value": "abcdefgh"}, {"value": "1234"}, {"value": "more"}]
    source.write_text(json.dumps([{"conversations": turns}, {"conversations": turns[:1]}, {"conversations": turns}]))
    assert trace.write_shares(source, Scale(0.5, 0.25), out) == 2
    assert json.loads(out.read_text())[0] == {"conversations": [{"value": "abcd"}, {"value": "1"}]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable JSON"),
        ("{}", "must be a JSON list"),
        ('[{"conversations": [{"text": 1}]}]', "conversation 1: it must be"),
        ("[]", "has 0 conversations"),
    ],
)
def test_no_sharegpt(text, message, tmp_path):
    (tmp_path / "share.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        trace.write_shares(tmp_path / "share.json", Scale(), tmp_path / "out.json")
