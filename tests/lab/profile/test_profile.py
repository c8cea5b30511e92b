"""`lynx-moe profile` on a tiny random model: what it measures, goes on with, draws again, refuses, and how it looks."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from tiny_moe import save_dense
from typer.testing import CliRunner

from lynx_moe.cli import app, main
from lynx_moe.lab.profile.measure import PARTS, measure, missing, part
from lynx_moe.lab.profile.measures.settings import Settings
from lynx_moe.lab.profile.show import findings, page, pictures, verdict, words
from lynx_moe.lab.shared import lines, memory

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZES = {"batch_size": 4, "num_sequences": 14, "num_experts": 3, "rounds": 0}


@pytest.fixture(scope="module")
def settings(folder: Path) -> Settings:
    return Settings(model=str(folder), **SIZES)


@pytest.fixture(scope="module")
def record(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole record, with its step times."""
    path = tmp_path_factory.mktemp("profile") / "profile.jsonl"
    measure(replace(settings, rounds=3), path)
    return path


def test_the_record_holds_every_observation(record: Path) -> None:
    whole = lines.load(record, "profile")
    assert {line["part"] for line in whole["results"]} == {*PARTS, "experts 0", "experts 1"}
    assert {(line["phase"], line["denied"]) for line in part(whole, "phases")} == {
        (phase, name) for phase in ("decode", "prefill") for name in ("first rank", "last rank", "random half")
    }
    ranks = [(line["what"], line["rank"]) for line in part(whole, "ranks")]
    assert ranks == [*(("deny", rank) for rank in range(4)), *(("keep", kept) for kept in (1, 2, 3))]
    assert [line["layer"] for line in part(whole, "layers")] == [0, 1]
    use = part(whole, "routing")[0]["use"]
    for layer in (0, 1):
        tried = [line["expert"] for line in part(whole, "experts") if line["layer"] == layer]
        assert sorted(use[layer], reverse=True)[:3] == [use[layer][expert] for expert in tried]
    for line in whole["results"]:
        if "kl" in line:
            assert line["kl_interval"][0] <= line["kl"] <= line["kl_interval"][1]
    total = sum(line["num_tokens"] for line in part(whole, "confidence") if line["denied"] == "first rank")
    assert total == part(whole, "routing")[0]["num_tokens"]


def test_what_takes_more_memory_than_there_is_is_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free", lambda device: 10**6)
    with pytest.raises(ValueError, match=r"batch 4 would take about .* lower --batch-size, --prefix or --steps, or"):
        measure(settings, tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


def test_an_interrupted_profile_goes_on_to_the_same_record(settings: Settings, tmp_path: Path) -> None:
    first = measure(settings, tmp_path / "a.jsonl")
    written = (tmp_path / "a.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b.jsonl").write_text("".join(line for line in written if '"ranks"' not in line and "ts 1" not in line))
    said: list[str] = []
    again = measure(settings, tmp_path / "b.jsonl", advance=said.append)
    assert said == ["loading the model", "ranks, then 1 more", "experts 1"]
    by_part = lambda whole: sorted(json.dumps(line) for line in whole["results"])  # noqa: E731
    assert by_part(again) == by_part(first)
    with pytest.raises(ValueError, match="seed=0, now it is 1"):
        measure(replace(settings, seed=1), tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("".join(written[:3]))
    with pytest.raises(ValueError, match="the record lacks confidence"):
        page.draw(lines.load(tmp_path / "b.jsonl", "profile"), tmp_path / "b.html")


@pytest.fixture(scope="module")
def drawn(record: Path) -> Path:
    """The page, drawn where the model is gone."""
    whole = lines.load(record, "profile")
    whole["settings"]["model"] = "gone/from here"
    return page.draw(whole, record.with_name("page.html"))


def test_the_page_is_drawn_from_the_record_alone_and_holds_all_it_needs(record: Path, drawn: Path) -> None:
    html = drawn.read_text()
    assert html.count("data:image/png;base64,") == len(pictures.FIGURES) == 8
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    for figure in pictures.FIGURES:
        assert figure.title in html
        assert drawn.with_name(f"page-{figure.key}.png").stat().st_size > 5000
    assert drawn.with_suffix(".png").stat().st_size > 50_000
    assert html.rindex("<h2>Verdict</h2>") > html.rindex("<img")
    assert str(escape(verdict.verdict(lines.load(record, "profile"))[0])) in html
    shown = CliRunner().invoke(app, ["plot", str(record)])
    assert shown.exit_code == 0, shown.output
    assert record.with_suffix(".html").read_text().count("<img") == 8


def test_timing_may_be_left_out(record: Path) -> None:
    whole = lines.load(record, "profile")
    whole["results"] = [line for line in whole["results"] if line["part"] != "time"]
    with pytest.raises(ValueError, match="lacks time"):
        page.draw(whole, record.with_name("none.html"))
    whole["settings"]["rounds"] = 0
    assert missing(whole) == []
    assert [figure.key for figure in pictures.shown(whole)] == [figure.key for figure in pictures.FIGURES][1:]


def test_the_words_follow_the_numbers(record: Path) -> None:
    whole = lines.load(record, "profile")
    low = {"kl_by_sequence": [0.01, 0.02, 0.03], "steps_by_sequence": [3, 4, 5]}
    high = low | {"kl_by_sequence": [0.11, 0.13, 0.16]}
    assert (words.more(high, low), words.more(low, high), words.more(low, low)) == (True, False, None)
    for line in part(whole, "phases"):
        line |= high if line["phase"] == "prefill" else low
    assert verdict.verdict(whole)[1].startswith("Prefill is the sensitive phase")
    for line in part(whole, "phases"):
        line |= low if line["phase"] == "prefill" else high
    assert verdict.verdict(whole)[1].startswith("Against what was published")
    for line in part(whole, "check"):
        line |= {"kl": 0.5, "kl_interval": [0.4, 0.6]}
    assert "serve this model as it is" in verdict.verdict(whole)[-1]
    assert verdict.command(whole) is None
    part(whole, "check")[1] |= {"kl": 0.004, "kl_interval": [0.002, 0.006], "before": 9.0, "after": 7.0}
    assert "Suggested: priced:price=0.03. In batches of 4 it loads 7.0 instead of 9.0" in verdict.verdict(whole)[-1]
    assert verdict.command(whole) == "lynx-moe serve MODEL --policy priced:price=0.03"
    assert [words.number(value) for value in (9484.5, 56.44, 1.04, 0.0432, 0.0)] == [
        "9,484",
        "56.4",
        "1.0",
        "0.043",
        "0",
    ]


def test_small_models_are_called_small(record: Path) -> None:
    whole = lines.load(record, "profile")
    for line in part(whole, "time"):
        line["cache_bytes"] = line["experts_bytes"] + 1
    assert "this model is small" in findings.time(whole)
    for line in part(whole, "time"):
        line["cache_bytes"] = line["experts_bytes"]
    assert "fetched from memory at every step" in findings.time(whole)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 0}, "use 2 or more"),
        ({"batch_size": 15}, "needs more than 14 sequences"),
        ({"num_experts": 0}, "at least 1 expert"),
        ({"rounds": 2}, "3 rounds or more"),
        ({"tolerance": 0.0}, "above 0"),
        ({"steps": 0}, "1 or more"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Settings(**{"model": "m", **SIZES, **change})


def test_bad_input_gets_one_line(
    folder: Path, record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_dense(tmp_path / "dense")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "a", "continuation": "b c d e f g h"}) + "\n")
    corrupt = tmp_path / "corrupt.jsonl"
    corrupt.write_text(record.read_text()[:-40])
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text(re.sub(r'"kl_interval"', '"other"', record.read_text()))
    sizes = ["--batch-size", "4", "--out", str(tmp_path / "out")]
    for args, says in (
        (["profile", str(tmp_path / "dense"), *sizes], "has no MoE layer"),
        (["profile", str(folder), "--data", str(tmp_path / "empty.txt"), *sizes], "holds no text"),
        (["profile", str(folder), "--data", str(tmp_path / "one.jsonl"), *sizes], "fills no batch of 4 sequences"),
        (["profile", str(folder), "--batch-size", "0"], "use 2 or more"),
        (["plot", str(corrupt)], "not a readable record"),
        (["plot", str(foreign)], "not those of a profile"),
    ):
        monkeypatch.setattr("sys.argv", ["lynx-moe", *args])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert says in line


def test_a_browser_shows_all_pictures_without_a_network(drawn: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    html = tmp_path / "page.html"
    script = "document.title=[...document.images].filter(i=>i.complete&&i.naturalWidth>600).length+' pictures'"
    html.write_text(drawn.read_text().replace("</body>", f"<script>onload=()=>{{{script}}}</script></body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    seen = subprocess.run(
        [
            browser,
            *options,
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--virtual-time-budget=5000",
            "--dump-dom",
            str(html),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    ).stdout
    assert "<title>8 pictures</title>" in seen
