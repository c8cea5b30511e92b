"""Published routes: read as they stand, drawn by a seed, and decided as the model's own logits would be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made_routes import EXPERTS, LAYERS, SPEC, TOKENS, TOP_K, made_logits, parts, written

from lynx_moe.lab.replay import cache, routes
from lynx_moe.lab.replay.measure import Setting, replay
from lynx_moe.lab.replay.over_routes import Draw, replay_routes
from lynx_moe.lab.replay.recording import Recorded, Recording
from lynx_moe.lab.shared import tables
from lynx_moe.policies import POLICIES, Placement, make_policy
from lynx_moe.routing import Routing, Rows, loaded

OWN_ONLY = ["vanilla", "priced:price=0.1", "topk:k=2", "naee:beta=0.7", "min-p:k_min=1,threshold=0.6", "oea:k0=1"]


@pytest.mark.parametrize("policy", OWN_ONLY)
def test_a_policy_decides_on_routes_as_on_the_logits(tmp_path: Path, policy: str) -> None:
    trace = routes.load(written(tmp_path))
    drawn = routes.draw(trace, 6, "mixed", 5, 4, seed=1)
    logits = made_logits()
    spot = {tuple(ids) + tuple(weights): n for n, (ids, weights) in enumerate(zip(*both(trace, 0), strict=True))}
    places = [spot[tuple(i) + tuple(w)] for i, w in zip(*(part.tolist() for part in both(drawn, 0)), strict=True)]
    full = [Recorded(layer.name, SPEC, logits[number][places], layer.own) for number, layer in enumerate(drawn.layers)]
    known = Recording(tuple(full), drawn.rows, drawn.remap, {"shape": drawn.facts["shape"]})
    (by_routes,), (by_logits,) = replay(drawn, [policy]), replay(known, [policy])
    for name in ("before", "after", "overlap", "changed", "x"):
        assert by_routes[name] == pytest.approx(by_logits[name]), name
    assert (by_routes["after"] < by_routes["before"]) is (policy != "vanilla")
    assert by_routes["kept"] == pytest.approx(by_routes["after"] / by_routes["before"])


def both(found: routes.Routes | Recording, layer: int) -> tuple:
    if isinstance(found, routes.Routes):
        return found.ids_LNK[layer].tolist(), found.weights_LNK[layer].tolist()
    return found.layers[layer].own.ids, found.layers[layer].own.weights


def test_x_is_the_squared_share_of_what_a_row_lost(tmp_path: Path) -> None:
    drawn = routes.draw(routes.load(written(tmp_path)), 6, "mixed", 5, 4, seed=1)
    (line,) = replay(drawn, ["topk:k=1"])
    weights = torch.cat([layer.own.weights for layer in drawn.layers])
    lost = (weights / weights.sum(-1, keepdim=True))[:, 1:].square().sum(-1)
    assert line["x"] == pytest.approx(float(lost.mean()))
    assert line["overlap"] == pytest.approx(1 / 3)


def test_who_looks_further_is_refused_by_name(tmp_path: Path) -> None:
    drawn = routes.draw(routes.load(written(tmp_path)), 4, "mixed", 5, 1, seed=0)
    for policy in ("lynx", "xshare:alpha=0.5", "random:num_keep=4", "oea:k0=1,per_rank=true"):
        with pytest.raises(ValueError, match=f"{policy} looks at scores of experts that a row did not choose"):
            replay(drawn, ["vanilla", policy])
    assert {name for name, policy in POLICIES.items() if policy.own_only} >= {"priced", "topk", "naee", "min-p", "oea"}


@pytest.mark.parametrize("mix", ["one", "mixed"])
def test_batches_are_stretches_of_sequences(tmp_path: Path, mix: str) -> None:
    data = parts()
    data["weights"] = np.broadcast_to(np.arange(TOKENS)[None, :, None] + 1.0, data["weights"].shape)  # token numbers
    trace = routes.load(written(tmp_path, weights=data["weights"]))
    drawn = routes.draw(trace, 4, mix, 6, 8, seed=3)
    assert drawn.rows.tolist() == [4] * 48
    token_RSB = (drawn.layers[1].own.weights[:, 0].long() - 1).view(8, 6, 4)
    assert torch.equal(token_RSB[:, 1:], token_RSB[:, :-1] + 1)
    assert (token_RSB // 20 == token_RSB[:, :1] // 20).all()  # no stretch leaves its sequence
    for run in token_RSB:
        assert len(run.flatten().unique()) == 24
        assert mix == "mixed" or len((run // 20 % 2).unique()) == 1
    again, other = (routes.draw(trace, 4, mix, 6, 8, seed=seed).layers[0].own.weights for seed in (3, 4))
    assert torch.equal(again, drawn.layers[0].own.weights)
    assert not torch.equal(again, other)


def test_too_large_a_batch_is_refused(tmp_path: Path) -> None:
    trace = routes.load(written(tmp_path))
    with pytest.raises(ValueError, match="no batch of 400 can be drawn"):
        routes.draw(trace, 400, "mixed", 5, 1, seed=0)
    with pytest.raises(ValueError, match="mix='all' is unknown; allowed: one, mixed"):
        routes.draw(trace, 4, "all", 5, 1, seed=0)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sequence": None}, "it lacks sequence"),
        ({"weights": np.ones((LAYERS, TOKENS, 2))}, "shapes do not fit"),
        ({"ids": np.zeros((LAYERS, TOKENS, TOP_K), dtype=np.int64)}, "names an expert twice"),
        ({"num_experts": np.array(3)}, "with 3 experts"),
        ({"weights": np.full((LAYERS, TOKENS, TOP_K), np.nan)}, "must be finite"),
        ({"task": np.full(TOKENS, 7)}, "for 2 names"),
    ],
)
def test_a_bad_trace_is_explained(tmp_path: Path, changed: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(ValueError, match=f"not a readable route trace.*{says}"):
        routes.load(written(tmp_path, **changed))


def test_a_file_that_is_no_trace_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    for name in ("text.npz", "missing.npz"):
        with pytest.raises(ValueError, match=f"{name} is not a readable route trace"):
            routes.load(tmp_path / name)


def test_what_a_file_leaves_out_is_found_out(tmp_path: Path) -> None:
    trace = routes.load(written(tmp_path, num_experts=None, task=None, tasks=None))
    assert trace.num_experts == int(parts()["ids"].max()) + 1
    assert trace.names == ("all",)


def test_a_cache_loads_what_it_lost() -> None:
    used = torch.zeros(1, 5, 6, dtype=torch.bool)
    for step, experts in enumerate([(0, 1), (1, 2), (0, 3), (1, 3), (4, 5)]):
        used[0, step, list(experts)] = True
    # three slots: after step 2 they hold 3, 0 and 2 of (1, 2), the later one; so 1 is loaded again
    assert cache.loads(used, 3).tolist() == [[2, 1, 1, 1, 2]]
    assert cache.loads(used, 6).tolist() == [[2, 1, 1, 0, 2]]  # each once


def test_ranks_replicas_and_caches_count_as_each_step_alone(tmp_path: Path) -> None:
    drawn = routes.draw(routes.load(written(tmp_path)), 7, "mixed", 5, 2, seed=1)
    (line,) = replay(drawn, ["priced:price=0.05"], Setting(ranks=3, replicas=2, slots=2))
    policy, placement = make_policy("priced:price=0.05"), Placement.linear(EXPERTS, 3)
    replica, union, fullest = [], [], []
    used_LSE = torch.zeros(LAYERS, 10, EXPERTS, dtype=torch.bool)
    for number, layer in enumerate(drawn.layers):
        for step in range(10):
            rows = slice(7 * step, 7 * step + 7)
            for part in (slice(0, 4), slice(4, 7)):  # of seven rows
                own = Routing(layer.own.ids[rows][part], layer.own.weights[rows][part])
                mine = loaded(policy.route(layer.logits[rows][part], SPEC, None, own).ids, EXPERTS)
                replica.append(int(mine.sum()))
                used_LSE[number, step] |= mine
            union.append(int(used_LSE[number, step].sum()))
            fullest.append(int(placement.count(used_LSE[number, step]).max()))
    assert line["after"] == pytest.approx(np.mean(union))
    assert line["fullest_after"] == pytest.approx(np.mean(fullest))
    assert line["replica_after"] == pytest.approx(np.mean(replica))
    by_rank = [cache.loads(used_LSE & (placement.here_RE[rank]), 2) for rank in range(3)]
    assert line["loads_after"] == pytest.approx(float(torch.stack(by_rank).amax(0).double().mean()))
    assert line["replica_after"] < line["after"]


def test_votes_make_what_others_kept_a_step_before_cost_nothing(tmp_path: Path) -> None:
    """Each replica's decision, made once more beside rows that hold what the others kept and may not change."""
    drawn = routes.draw(routes.load(written(tmp_path)), 7, "mixed", 5, 2, seed=1)
    setting = Setting(replicas=3, votes=True)
    (voted,), (alone,) = (replay(drawn, ["priced:price=0.2"], one) for one in (setting, Setting(replicas=3)))
    policy, parts, union = make_policy("priced:price=0.2"), (slice(0, 3), slice(3, 5), slice(5, 7)), []
    for layer in drawn.layers:
        kept: list[set[int]] = [set(), set(), set()]
        for step in range(10):
            rows, before = slice(7 * step, 7 * step + 7), kept if step % 5 else [set()] * 3
            kept = []
            for number, part in enumerate(parts):
                ids, weights = layer.own.ids[rows][part], layer.own.weights[rows][part]
                donated = sorted(set().union(*(one for other, one in enumerate(before) if other != number)))
                donors = torch.tensor([[expert] * TOP_K for expert in donated], dtype=ids.dtype).view(-1, TOP_K)
                own = Routing(torch.cat([ids, donors]), torch.cat([weights, torch.ones(len(donors), TOP_K)]))
                logits = torch.cat([layer.logits[rows][part], torch.zeros(len(donors), EXPERTS)])
                remap = torch.arange(len(logits)) < len(ids)
                final = policy.route(logits, SPEC, Rows(remap=remap), own)
                kept.append(set(final.ids[: len(ids)].flatten().tolist()))
            union.append(len(set().union(*kept)))
    assert voted["after"] == pytest.approx(np.mean(union))
    assert voted["x"] < alone["x"]
    recording = Recording(drawn.layers, drawn.rows, drawn.remap, {"shape": drawn.facts["shape"]})
    with pytest.raises(ValueError, match="votes of the step before need batches that go on"):
        replay(recording, ["priced"], setting)


def test_settings_that_leave_nothing_are_refused() -> None:
    for bad, says in (
        ({"steps": 0}, "leave nothing to replay"),
        ({"replicas": 0}, "cannot share out the rows"),
        ({"slots": 0}, "holds no expert"),
        ({"votes": True}, "give --replicas 2 or more"),
        ({"slots": 4, "steps": 3}, "needs every step in its order"),
    ):
        with pytest.raises(ValueError, match=says):
            Setting(**bad)


def test_the_table_shows_what_was_asked_for(tmp_path: Path) -> None:
    draw = Draw(batch_sizes=(2, 4), mixes=("one", "mixed"), batches=3, steps=5)
    lines = replay_routes(written(tmp_path), ["vanilla", "topk:k=2"], draw, Setting(ranks=2, slots=4))
    assert [(line["batch"], line["tasks"], line["policy"]) for line in lines][:4] == [
        (2, "one", "vanilla"),
        (2, "one", "topk:k=2"),
        (2, "mixed", "vanilla"),
        (2, "mixed", "topk:k=2"),
    ]
    head, rows = tables.replay_table(lines, ranks=2, slots=4)
    assert head[:5] == ("batch", "tasks", "policy", "distinct experts", "kept, %")
    assert head[5:7] == ("fullest of 2 ranks", "loads, 4 slots")
    assert {len(row) for row in rows} == {len(head)}
    low, high = lines[1]["kept_interval"]
    assert low <= lines[1]["kept"] <= high < 1
