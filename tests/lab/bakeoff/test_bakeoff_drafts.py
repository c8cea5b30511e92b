"""Cells in which every request verifies a draft: their rows, their effects, who competes there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import lynx_moe
from lynx_moe.cli import app
from lynx_moe.lab.bakeoff import cell, findings
from lynx_moe.lab.bakeoff import measure as bakeoff
from lynx_moe.lab.bakeoff.together import together
from lynx_moe.lab.fidelity.lockstep import decode_together, left_padded, prefill
from lynx_moe.lab.shared.documents import Batch, Document

CHANCES = (1.0, 0.6, 0.25)
CPU = torch.device("cpu")


def batch_of(num_steps: int) -> Batch:
    torch.manual_seed(2)
    rest = len(CHANCES) * num_steps + 1
    members = [Document("a", tuple(torch.randint(3, 900, (4,)).tolist()), tuple(range(20 + n, 20 + n + rest)))
               for n in range(3)]  # fmt: skip
    return Batch(tuple(members), num_steps)


def test_rows_of_a_request_stand_together_and_each_setting_has_all_requests() -> None:
    rows = cell.drafted(2, 3, CHANCES, CPU)
    assert rows.request is not None
    assert rows.depth is not None
    assert rows.chance is not None
    assert rows.request.tolist() == [0, 0, 0, 1, 1, 1] * 3
    assert rows.depth.tolist() == [0, 1, 2] * 6
    assert rows.chance.tolist() == pytest.approx(list(CHANCES) * 6)


def test_an_effect_is_the_mean_over_the_draft_by_what_is_committed(folder: Path) -> None:
    model, batch, spec = AutoModelForCausalLM.from_pretrained(folder).eval(), batch_of(2), "moe-spec:budget=5"
    run = lynx_moe.apply(model, together([spec]))
    run.rows = cell.drafted(3, 2, CHANCES, CPU)
    (effect,) = decode_together(model, batch, run, 2, chances=CHANCES)
    assert effect.kl.shape == (2, 3)
    alone = lynx_moe.apply(model, spec)
    alone.rows = cell.drafted(3, 1, CHANCES, CPU)
    ids, mask = left_padded([member.prefix for member in batch.members])
    rest = torch.tensor([member.rest for member in batch.members])
    caches = [prefill(model, ids, mask) for _ in range(2)]
    share = torch.tensor(CHANCES) / sum(CHANCES)
    with torch.inference_mode():
        for step in range(2):
            fed = rest[:, 3 * step : 3 * step + 3]
            truth = model(fed, past_key_values=caches[0], use_cache=True).logits.log_softmax(-1)
            with alone:
                other = model(fed, past_key_values=caches[1], use_cache=True).logits.log_softmax(-1)
            kl = F.kl_div(other, truth, reduction="none", log_target=True).sum(-1)
            torch.testing.assert_close(effect.kl[step], (kl * share).sum(-1), atol=1e-4, rtol=1e-3)
    assert (effect.kl > 1e-4).any()


def test_rows_that_are_hardly_committed_count_less_to_priced_alone(folder: Path) -> None:
    model, batch = AutoModelForCausalLM.from_pretrained(folder).eval(), batch_of(3)
    kept = {}
    for chances in ((1.0, 1.0, 1.0), (1.0, 0.01, 0.01)):
        policy = together(["priced:price=0.1", "oea:k0=2"])
        run = lynx_moe.apply(model, policy)
        run.rows = cell.drafted(3, 3, chances, CPU)
        decode_together(model, batch, run, 3, chances=chances)
        kept[chances] = [after for _, after in policy.loads.means()[1:]]
    (sure, oea), (unsure, same) = kept.values()
    assert unsure < sure
    assert same == pytest.approx(oea, rel=0.1)  # its own earlier steps stand in the cache, which nothing weighs


@pytest.fixture(scope="module")
def settings(folder: Path) -> bakeoff.Settings:
    given: dict[str, Any] = {"batch_sizes": (1, 4), "mixes": ("draft",), "norms": ("model",)}
    return bakeoff.Settings(model=str(folder), num_sequences=8, drafts=(0.7, 0.5), **given)


def test_methods_for_drafts_compete_with_priced(settings: bakeoff.Settings, tmp_path: Path) -> None:
    names = ("priced", "moe-spec", "acceptmoe", "oracle")
    whole = bakeoff.measure(settings, tmp_path / "bakeoff.jsonl", names)
    tested = bakeoff.tested(whole)
    assert {line["mix"] for line in tested} == {"draft"}
    for size in (1, 4):
        mine = [line for line in tested if line["batch_size"] == size]
        assert {line["policy"] for line in mine} == {"priced", "moe-spec", "acceptmoe"}  # the oracle knows no chances
        for name in ("priced", "moe-spec", "acceptmoe"):
            assert min(line["after"] / line["before"] for line in mine if line["policy"] == name) < 0.995
    titles = [title for title, _, _ in findings.front_tables(whole)]
    assert titles[0] == "KL in millinats, batch 1, verifying drafts"
    again = bakeoff.measure(settings, tmp_path / "bakeoff.jsonl", names)
    assert again["results"] == whole["results"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--mixes", "draft"), "--drafts goes with --mixes draft"),
        (("--drafts", "0.7"), "--drafts goes with --mixes draft"),
        (("--mixes", "draft", "--drafts", "0.5,0.7"), "never rising"),
        (("--mixes", "drafts"), "name some of one, mixed"),
    ],
)
def test_bad_settings_are_one_line(args: tuple[str, ...], says: str, folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bakeoff", str(folder), "--out", str(tmp_path), *args])
    assert isinstance(result.exception, ValueError)
    assert says in str(result.exception)
    assert len(str(result.exception).splitlines()) == 1
