"""What a run of the client becomes in a record, what is said of it, and how the record grows."""

import json

import pytest
from typer.testing import CliRunner

from lynx_moe.cli import app
from lynx_moe.lab.load import client, measure, show
from lynx_moe.lab.load.client import Arrivals
from lynx_moe.lab.load.findings import Objective, goodput, groups, ratio, served
from lynx_moe.lab.shared import lines


def line(policy, rate, tpot, number=1, server="", requests=10, late=0):
    each = [[100.0, tpot]] * (requests - late) + [[5000.0, tpot]] * late
    spread = {"50": tpot, "90": tpot, "99": 2 * tpot, "mean": tpot}
    return {
        "server": server,
        "round": number,
        "rate": rate,
        "policy": policy,
        "spec": policy,
        "cold": True,
        "ttft_ms": {**spread, "50": 100.0},
        "tpot_ms": spread,
        "itl_ms": spread,
        "requests": each,
        "seconds": 10.0,
        "prompt_tokens": 100,
        "answer_tokens": int(1000 * rate),
        "before": 40.0,
        "after": 20.0 if policy == "priced" else 40.0,
        "kl": 0.002 if policy == "priced" else 0.0,
        "kl_rows": 50,
    }


RESULTS = [
    *(line("vanilla", 1.0, 20.0 + n, n) for n in (1, 2, 3)),
    *(line("priced", 1.0, 10.0 + n, n) for n in (1, 2, 3)),
    *(line("vanilla", 2.0, 40.0, n) for n in (1, 2, 3)),
    *(line("priced", 2.0, 24.0, n) for n in (1, 2, 3)),
]
RECORD = {
    "kind": "load",
    "settings": {"model": "m", "trace": "t.jsonl", "policies": ["vanilla", "priced"], "requests": 10,
                 "prompt_scale": 1.0, "answer_scale": 0.5},
    "environment": {"cpu": "a CPU", "cores": 2, "date": "2026-01-01", "versions": {}},
    "results": RESULTS,
}  # fmt: skip


def test_the_highest_rate_at_which_the_objective_is_met():
    found = {one["policy"]: one for one in served(RESULTS, Objective(1000, 25))}
    assert (found["vanilla"]["rate"], found["vanilla"]["tokens"]) == (1.0, 100.0)
    assert (found["priced"]["rate"], found["priced"]["tokens"]) == (2.0, 200.0)
    assert served(RESULTS, Objective(1000, 5))[0]["rate"] is None


def test_a_rate_above_one_that_was_missed_does_not_count():
    results = [line("vanilla", 1.0, 50.0), line("vanilla", 2.0, 10.0)]
    assert served(results, Objective(1000, 25))[0]["rate"] is None


def test_nine_of_ten_must_meet_it_in_both_figures():
    assert served([line("vanilla", 1.0, 9.0, late=1)], Objective(1000, 10))[0]["rate"] == 1.0
    assert served([line("vanilla", 1.0, 9.0, late=2)], Objective(1000, 10))[0]["rate"] is None
    assert goodput([line("vanilla", 1.0, 9.0, late=2)], Objective(1000, 10)) == pytest.approx(0.8)


def test_ratios_are_of_the_same_round():
    by = groups(RESULTS)
    middle, least, most = ratio(by["", 1.0, "priced"], by["", 1.0, "vanilla"])
    assert (least, middle, most) == pytest.approx((23 / 13, 22 / 12, 21 / 11))


def test_tables_and_picture(tmp_path):
    objectives = show.objectives_of(1000, [25.0, 50.0])
    head, rows = show.rows(RECORD, objectives)
    assert all(len(row) == len(head) for row in rows)
    assert rows[1][5] == "1.83x [1.77, 1.91]"
    assert rows[1][7:9] == ("40.0 → 20.0", "2.00 (150)")
    last = show.served_rows(RECORD, objectives)
    assert last[1] == ("TTFT 1000 ms, TPOT 25 ms", "priced", "2", "200", "2.00x")
    assert "prefix cache emptied before every run" in show.note(RECORD)
    lines.save(RECORD, tmp_path / "load.jsonl")
    printed = CliRunner().invoke(app, ["table", str(tmp_path / "load.jsonl")])
    assert "| 1 | priced | 100, 24 | 12.0, 12.0, 24.0 |" in printed.output, printed.output
    assert show.draw(RECORD, tmp_path / "x.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="must be above 0"):
        show.objectives_of(1000, [0.0])


def test_the_tpot_of_a_request_is_per_token_and_not_per_message():
    found = {f"p{p}_{name}_ms": 1.0 for p in (50, 90, 99) for name in ("ttft", "tpot", "itl")}
    found |= {f"mean_{name}_ms": 1.0 for name in ("ttft", "tpot", "itl")}
    found |= {"ttfts": [0.1, 0.2], "itls": [[0.03, 0.06], []], "output_lens": [4, 1], "duration": 2.0}
    found |= {"total_input_tokens": 5, "total_output_tokens": 5}
    assert client.figures(found)["requests"] == [[100.0, 30.0], [200.0, None]]


class FakeServer:
    """In place of a real one: notes what it is asked."""

    def __init__(self, notes):
        self.url, self.notes, self.goals = "http://x", notes, ()

    def model(self):
        return "m", 4096

    def switch(self, asked):
        self.notes.append(asked.policy if not asked.goals else asked.body)


@pytest.fixture
def faked(monkeypatch, tmp_path):
    """measure() with a server and a client that answer at once; `notes` has what they were asked."""
    from contextlib import contextmanager

    notes: list[object] = []

    @contextmanager
    def server(settings, bound, log):
        notes.append(("server", bound))
        yield FakeServer(notes)

    def one(server, target, arrivals, seed, wish):
        if len([note for note in notes if note == "run"]) == 5:
            raise KeyboardInterrupt
        notes.append("run")
        return {"wish": wish, "rate_asked": arrivals.rate, "stretch": arrivals.stretch}

    monkeypatch.setattr(measure, "import_vllm", lambda: None)
    monkeypatch.setattr(measure, "_server", server)
    monkeypatch.setattr(measure, "one", one)
    monkeypatch.setattr(client, "send", lambda *args: notes.append("warm"))
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 1000 * n, "input_length": 5, "output_length": 3} for n in range(5)]
    trace.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return notes, trace


def settings_of(trace, **changes):
    return measure.Settings(model="org/m", trace=trace, **{"policies": ("vanilla", "lynx"), "rounds": 2, **changes})


def test_policies_take_turns_and_an_interrupted_run_goes_on(faked, tmp_path, monkeypatch):
    notes, trace = faked
    settings, path = settings_of(trace, rates=(1.0, 4.0)), tmp_path / "load.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measure.measure(settings, path, lambda text: None)
    assert len(lines.load(path, "load")["results"]) == 5
    notes.clear()
    whole = measure.measure(settings, path, lambda text: None)
    order = [(one["round"], one["rate"], one["policy"]) for one in whole["results"]]
    assert order == [
        (1, 1.0, "vanilla"), (1, 1.0, "lynx"), (1, 4.0, "vanilla"), (1, 4.0, "lynx"),
        (2, 1.0, "lynx"), (2, 1.0, "vanilla"), (2, 4.0, "lynx"), (2, 4.0, "vanilla"),
    ]  # fmt: skip
    assert [one["stretch"] for one in whole["results"][:3:2]] == [1.0, 0.25]  # the trace has one request a second
    assert notes == [("server", None), "warm", "vanilla", "run", "lynx", "run", "vanilla", "run"]
    notes.clear()
    assert measure.measure(settings, path, lambda text: None) == whole
    assert not notes


def test_under_a_bound_the_baseline_is_exact_requests_and_nothing_is_switched(faked, tmp_path):
    notes, trace = faked
    settings = settings_of(trace, max_kl=(0.01,), rounds=1, warm_rounds=2)
    whole = measure.measure(settings, tmp_path / "load.jsonl", lambda text: None)
    bounded = [one for one in whole["results"] if one["server"]]
    assert [(one["policy"], one["wish"]) for one in bounded] == [("vanilla", "exact"), ("priced", None)]
    assert notes[notes.index(("server", 0.01)) :] == [("server", 0.01), "warm", "warm", "warm", "run", "run"]


def test_a_policy_with_a_goal_is_warmed_up_after_its_switch_and_the_others_turn_it_off(faked, tmp_path):
    notes, trace = faked
    policies = ("vanilla", "priced", "priced@slo_tpot_ms=70", "priced@slo_tpot_ms=80", "lynx@max_kl=0.01,slo_tpot_ms=9")
    settings = settings_of(trace, policies=policies, rounds=1, warm_rounds=2)
    whole = measure.measure(settings, tmp_path / "load.jsonl", lambda text: None)
    off = {"slo_tpot_ms": None, "max_kl": None}
    priced = "priced"
    assert notes == [
        *(("server", None), "warm"),
        *({"policy": "vanilla"} | off, "run"),
        *({"policy": priced} | off, "run"),
        *({"policy": priced} | off | {"slo_tpot_ms": 70.0}, "warm", "warm", "run"),
        *(off | {"slo_tpot_ms": 80.0}, "run"),  # what was learnt for 70 is kept
        *({"policy": "lynx", "max_kl": 0.01, "slo_tpot_ms": 9.0}, "warm", "warm", "run"),
    ]
    assert [one["policy"] for one in whole["results"]] == list(policies)
    assert [one["spec"] for one in whole["results"]] == ["vanilla", priced, priced, priced, "lynx"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policies": ("lynx",)}, "must be vanilla"),
        ({"policies": ("vanilla@slo_tpot_ms=5", "lynx")}, "must be vanilla"),
        (
            {"policies": ("vanilla", "priced@slo=5")},
            "'slo=5' is no goal; allowed: max_kl, slo_tpot_ms, such as priced@",
        ),
        ({"policies": ("vanilla", "priced@slo_tpot_ms=x")}, "'slo_tpot_ms=x' is no goal"),
        ({"policies": ("vanilla", "priced@")}, "'' is no goal"),
        ({"policies": ("vanilla", "priced@max_kl=1", "priced@max_kl=1.0")}, "each of them once"),
        ({"kind": "csv"}, "--kind 'csv' is unknown; allowed: timed_trace, burstgpt, sharegpt"),
        ({"rates": (0.0,)}, "above 0 requests per second"),
        ({"rates": (1.0, 1.0)}, "each once"),
        ({"rounds": 0}, "--rounds 0"),
        ({"url": "localhost:8000", "max_kl": (0.1,)}, "runs already has its own flags"),
        ({"prompt_scale": 2.0}, "--prompt-scale 2"),
    ],
)
def test_bad_settings(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        settings_of(tmp_path / "t", **changes)


def test_the_client_s_last_words_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "CLIENT", "no.such.module")
    arrivals = Arrivals("timed_trace", tmp_path / "t", 2, 1.0, 16, 1.0)
    with pytest.raises(ValueError, match=r"benchmark client ended with code 1: .*No module named"):
        client.send(client.Target("http://127.0.0.1:9", "m", "m", tmp_path), arrivals, 0)
