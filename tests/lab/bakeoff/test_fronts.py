"""Fronts: what is on them, what lies between, and intervals that belong together."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_moe.lab.bakeoff.findings import all_comparisons, comparisons, front_tables
from lynx_moe.lab.bakeoff.fronts import GAP, covering, fronts, lowest, pareto, ratios
from lynx_moe.lab.bakeoff.grids import GRIDS, ORACLE, budgets, settings, short
from lynx_moe.lab.bakeoff.refine import ROUNDS, between, refinements
from lynx_moe.policies import POLICIES, make_policy
from lynx_moe.routing import RouterSpec

SEQUENCES = 40
points = st.lists(st.tuples(st.integers(1, 20), st.integers(-30, 0)), min_size=1, max_size=12)


@given(points)
def test_nothing_on_the_front_is_beaten_and_everything_else_is(drawn):
    kept, log_kl = (np.array(column, dtype=float) for column in zip(*drawn, strict=True))
    on = pareto(kept, log_kl)
    assert (np.diff(kept[on]) > 0).all()
    assert (np.diff(log_kl[on]) < 0).all()
    for x, y in zip(kept, log_kl, strict=True):
        assert ((kept[on] <= x) & (log_kl[on] <= y)).any()


def test_between_settings_kl_is_interpolated_geometrically_and_beyond_the_last_it_stays():
    kept, kl = np.array([0.2, 0.4, 0.6, 0.5]), np.array([1.0, 1e-2, 1e-4, 0.5])
    gain = np.array([-3.0, -1.0, 0.0, -9.0])
    kept = 0.5 + kept / 10
    log_kl, told = lowest(kept, np.log(kl), gain, (0.51, 0.52, 0.53, 0.55, 0.59))
    np.testing.assert_allclose(np.exp(log_kl), [np.nan, 1, 0.1, 1e-3, 1e-4])
    np.testing.assert_allclose(told, [np.nan, -3, -2, -0.5, 0], atol=1e-9)


def test_nothing_is_said_of_holes_in_which_nothing_was_measured():
    """The check that found it: between 57.7 % and 96.9 % a ratio of 0.52 was printed where measuring gave 0.80."""
    kept, kl = np.array([0.50, 0.55, 0.577, 0.969]), np.array([1e-2, 1e-3, 1e-4, 1e-6])
    shares = (0.3, 0.5, 0.52, 0.56, 0.577, 0.6, 0.8, 0.969, 0.99)
    found = np.exp(lowest(kept, np.log(kl), -kl, shares, blank=True)[0])
    known = [False, True, True, True, True, False, False, True, True]
    assert np.isfinite(found).tolist() == known
    assert found[[1, 4, 7, 8]] == pytest.approx([1e-2, 1e-4, 1e-6, 1e-6])
    drawn = np.exp(lowest(kept, np.log(kl), -kl, shares)[0])  # of a resample: something, but nothing interpolated
    assert drawn[[5, 6]] == pytest.approx([1e-4, 1e-4])


def test_where_others_were_measured_in_a_gap_kl_stays():
    kept, kl = np.array([0.50, 0.54, 0.58, 0.62]), np.array([1e-2, 3e-2, 2e-2, 1e-4])
    log_kl, told = lowest(kept, np.log(kl), -kl, (0.5, 0.52, 0.6, 0.62), blank=True)
    assert np.exp(log_kl) == pytest.approx([1e-2, 1e-2, 1e-2, 1e-4])
    assert told == pytest.approx([-1e-2, -1e-2, -1e-2, -1e-4])


def test_a_wide_gap_is_covered_by_as_few_others_as_it_takes():
    kept = np.array([0.3, 0.32, 0.34, 0.36, 0.4, 0.5, 0.52, 0.9])
    log_kl = np.array([0.0, 5, 5, 5, -1, 5, -2, -3])
    assert covering(kept, log_kl, 0.04) == [0, 2, 3, 4, 5, 6, 7]
    assert covering(kept, log_kl, 1) == pareto(kept, log_kl)


def test_a_gap_is_a_dash_in_the_tables():
    base = noise(4)
    lines = [line("oea", kept, base * (1 - kept)) for kept in (0.3, 0.34, 0.38, 0.42, 0.97)]
    lines += [line("priced", kept, base * (1 - kept) / 2) for kept in (0.29, 0.33, 0.37, 0.41)]
    whole = {"results": [one | {"split": "test", "kind": "bakeoff"} for one in lines]}
    ratio, more = comparisons(whole)
    assert [cell != "-" for cell in ratio[2][0]] == [cell != "-" for cell in more[2][0]] == [True] * 3 + [False] * 4
    kl, gain = front_tables(whole)
    assert [cell != "-" for cell in kl[2][0]] == [cell != "-" for cell in gain[2][0]] == [True] * 3 + [False] * 4
    assert [cell != "-" for cell in kl[2][1]] == [True] * 7  # its knobs end there, and KL stays


def test_a_rival_whose_knobs_are_coarse_is_met_at_its_own_settings():
    """Else the best rival would be left out, and a worse one compared with."""
    base = noise(6)
    ours = [line("priced", kept, base * (1 - kept)) for kept in np.arange(0.3, 0.82, 0.04)]
    weak = [line("xshare", kept, 4 * base * (1 - kept)) for kept in np.arange(0.3, 0.82, 0.04)]
    strong = [line("oea", kept, base * (1 - kept) / 2) for kept in (0.33, 0.52, 0.66)]
    rows = {row["fraction"]: row for row in ratios(fronts([*ours, *weak, *strong]), "priced", ["oea", "xshare"])}
    assert {f: row["best"] for f, row in rows.items()} == {
        0.3: "oea", 0.4: "xshare", 0.5: "oea", 0.6: "xshare", 0.7: "oea", 0.8: "oea"}  # fmt: skip
    assert [rows[f]["share"] for f in (0.3, 0.4, 0.5, 0.7, 0.8)] == [0.33, 0.4, 0.52, 0.7, 0.8]
    assert rows[0.5]["ratio"] == pytest.approx(2, rel=0.01)
    assert rows[0.5]["ratio_interval"] == pytest.approx([2, 2], rel=0.01)
    whole = {"results": [one | {"split": "test", "kind": "bakeoff"} for one in (*ours, *weak, *strong)]}
    row = comparisons(whole)[0][2][0]
    assert row[1].endswith(" oea (at 33 %)")
    assert row[2].endswith(" xshare")


def test_log_likelihood_is_told_of_the_same_settings_with_its_paired_interval():
    base = noise(5)
    lines = [line("oea", kept, base, gain=-base / 4) for kept in (0.3, 0.34)]
    lines += [line("priced", kept, base / 2, gain=-base) for kept in (0.3, 0.34)]
    found = fronts(lines)
    assert found[0]["at"][0.3]["gain"] == pytest.approx(-base.mean() / 4)
    low, high = found[1]["at"][0.3]["gain_interval"]
    assert low < -base.mean() < high
    row = next(one for one in ratios(found, "priced", ["oea"]) if one["fraction"] == 0.3)
    assert row["ratio"] == pytest.approx(0.5)
    assert row["more"] == pytest.approx(-0.75 * base.mean())
    assert row["more_interval"][0] < row["more"] < row["more_interval"][1] < 0
    old = [{name: value for name, value in one.items() if "gain" not in name and name != "exact"} for one in lines]
    whole = {"results": [one | {"split": "test", "kind": "bakeoff"} for one in old]}
    assert [title for title, _, _ in comparisons(whole) if "likelihood" in title] == []  # of an older record


def spec_line(spec: str, kept: float, kl: float, method: str | None = None) -> dict[str, Any]:
    return line(method or spec.partition(":")[0], kept, np.full(SEQUENCES, kl)) | {"spec": spec}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("priced:price=0.01", "priced:price=0.04", ["priced:price=0.02"]),
        ("oracle:price=1", "oracle:price=4", ["oracle:price=2"]),
        ("oea:k0=2", "oea:k0=4", ["oea:k0=3"]),
        ("oea:k0=2", "oea:k0=3", []),
        ("xshare:budget=16", "xshare:budget=20,k0=1", ["xshare:budget=18", "xshare:budget=18,k0=1"]),
        ("topk:k=2,norm=mass", "topk:k=4,norm=mass", ["topk:k=3,norm=mass"]),
        ("topk:k=2,norm=mass", "topk:k=4", None),
        ("lynx", "lynx:alpha=4,beta=2", None),
        ("lynx:alpha=1,beta=1", "lynx:alpha=4,beta=1", ["lynx:alpha=2,beta=1"]),
        ("lynx-v1:num_keep=20", "lynx-v1:mode=confidence,threshold=0.5", None),
        ("reap:num_keep=16,data=x", "reap:num_keep=32,data=x", ["reap:num_keep=24,data=x"]),
    ],
)
def test_the_middle_of_two_settings(first, second, expected):
    assert between(first, second, RouterSpec(num_experts=64, top_k=8)) == expected


def test_gaps_are_halved_where_they_are_read_and_no_further():
    router = RouterSpec(num_experts=64, top_k=8)
    lines = [spec_line(f"oea:k0={k}", kept, 1 - kept) for k, kept in ((1, 0.2), (3, 0.36), (4, 0.5), (7, 0.95))]
    lines += [spec_line("priced:price=0.01", 0.97, 1e-3), spec_line("priced:price=0.04", 0.577, 1e-2)]
    found = {setting.spec: setting.method for setting in refinements(lines, router)}
    assert found == {"oea:k0=2": "oea", "oea:k0=5": "oea", "priced:price=0.02": "priced"}
    lynx = [("lynx:alpha=4,beta=1", 0.4), ("lynx", 0.5), ("lynx:alpha=1,beta=1", 0.9)]
    lines = [spec_line(spec, kept, 1 - kept) for spec, kept in lynx]
    assert [setting.spec for setting in refinements(lines, router)] == ["lynx:alpha=2,beta=1"]
    lines = [spec_line("priced:price=0.01", 0.97, 1e-3), spec_line("priced:price=1", 0.9, 0.1)]
    assert refinements(lines, router) == []  # no share up there is reported


def test_halving_ends_when_no_gap_is_left():
    """On a made-up method whose share falls with the logarithm of its price."""

    def measured(spec: str) -> dict[str, Any]:
        price = float(spec.partition("=")[2])
        kept = 1 / (1 + price)
        return spec_line(spec, kept, price)

    lines, rounds = [measured(f"priced:price={price}") for price in (0.1, 1, 10)], 0
    while new := refinements(lines, RouterSpec(num_experts=64, top_k=8)):
        lines, rounds = lines + [measured(setting.spec) for setting in new], rounds + 1
    assert rounds <= ROUNDS
    (front,) = fronts(lines)
    assert all(front["at"].values())
    kept = sorted(setting["kept"] for setting in front["settings"])
    assert max(b - a for a, b in pairwise(kept) if a < 0.8 and b > 0.3) <= GAP


def line(
    method: str, kept: float, kl: np.ndarray, mix: str = "mixed", gain: np.ndarray | None = None, **more: Any
) -> dict[str, Any]:
    """kl, gain: of each sequence."""
    gain = -kl if gain is None else gain
    shown = {"kl": kl.mean(), "kl_interval": [0, 1], "agree": 1.0, "kl_by_sequence": kl.tolist()}
    shown |= {"gain": gain.mean(), "gain_by_sequence": gain.tolist(), "exact": -3.0}
    where = {"batch_size": 16, "mix": mix, "before": 10.0, "after": 10 * kept, "steps_by_sequence": [3] * SEQUENCES}
    return {"policy": method.split()[0], "method": method, "spec": f"{method}:{kept}", **where, **shown, **more}


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(size=SEQUENCES)


def test_intervals_hold_the_mean_and_ratios_are_paired():
    base = noise(0)
    lines = [
        line("oea", 0.48, base),
        line("oea", 0.52, base / 100),
        line("oea", 0.51, base),
    ]
    lines += [line("ours", 0.48, base / 2), line("ours", 0.52, base / 200), line("lynx", 0.5, 9 * noise(1))]
    lines += [line("lynx", 0.9995, base / 1e4)]
    found = {one["method"]: one for one in fronts(lines)}
    assert [setting["spec"] for setting in found["oea"]["settings"]] == ["oea:0.48", "oea:0.52"]
    at = found["oea"]["at"]
    assert at[0.5]["kl"] == pytest.approx(base.mean() / 10)
    assert at[0.8]["kl"] == pytest.approx(base.mean() / 100)
    low, high = at[0.5]["interval"]
    assert 1.1 * low < at[0.5]["kl"] < high / 1.1
    assert found["lynx"]["at"][0.4] is None
    assert [setting["spec"] for setting in found["lynx"]["settings"]] == ["lynx:0.5"]
    assert found["lynx"]["at"][0.6] is None  # what lies before the one that keeps all is not known
    rows = ratios(list(found.values()), "ours", ["oea", "lynx", "ours"])
    assert [row["fraction"] for row in rows] == [0.5, 0.6, 0.7, 0.8]
    for row in rows:
        assert row["best"] == "oea"
        np.testing.assert_allclose([row["ratio"], *row["ratio_interval"]], 0.5)  # the same sequences in every draw


def test_cells_and_norms_are_kept_apart_and_the_best_norm_counts():
    base = noise(2)
    lines = [line("oea", 0.3, base, mix) for mix in ("one", "mixed")]
    lines += [line("ours", 0.3, base), line("ours norm=mass", 0.3, base / 4)]
    found = fronts(lines)
    assert [(one["mix"], one["method"]) for one in found] == [
        ("one", "oea"), ("mixed", "oea"), ("mixed", "ours"), ("mixed", "ours norm=mass")]  # fmt: skip
    (first, *_) = ratios(found, "ours", ["oea"])
    assert (first["mix"], first["ours"]) == ("mixed", "ours norm=mass")
    assert first["ratio"] == pytest.approx(0.25)


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (64, 8), (32, 4), (128, 8), (60, 4), (16, 1)])
def test_every_setting_of_every_grid_fits_its_router(experts, top_k):
    router = RouterSpec(num_experts=experts, top_k=top_k)
    found = settings(router, calibration="x.safetensors")
    assert len({one.spec for one in found}) == len(found)
    for one in found:
        if one.method == ORACLE:
            continue
        policy = make_policy(one.spec)
        assert policy.name == one.method.split()[0]
        assert ("norm=mass" in one.spec) == ("norm=mass" in one.method)
        if policy.calibration_file is None:
            policy.check(router)
    assert budgets(experts, top_k)[0] == top_k
    assert budgets(experts, top_k)[-1] < experts


def test_every_policy_has_a_grid_and_what_is_wrong_is_named():
    router = RouterSpec(num_experts=8, top_k=2)
    told = {name for name, policy in POLICIES.items() if policy.needs_residency}
    assert set(GRIDS) == set(POLICIES) - told - {"vanilla"}
    free = {one.method.split()[0] for one in settings(router)}
    assert free == {*GRIDS, ORACLE} - {"sere", "exfold", "reap"}
    assert {one.method.split()[0] for one in settings(router, [ORACLE, "oea"])} == {ORACLE, "oea"}
    with pytest.raises(ValueError, match="no grid of linx"):
        settings(router, ["linx"])
    with pytest.raises(ValueError, match="need --calibration"):
        settings(router, ["reap"])


def test_knobs_that_stay_make_a_method_of_their_own():
    router = RouterSpec(num_experts=8, top_k=2)
    found = settings(router, ["priced", "priced:ends=true,slope=1"], ("model", "mass"))
    assert list(dict.fromkeys(one.method for one in found)) == [
        "priced", "priced norm=mass", "priced:ends=true,slope=1", "priced:ends=true,slope=1 norm=mass"]  # fmt: skip
    for one in found:
        policy = make_policy(one.spec)
        assert (policy.ends, policy.slope) == ((True, 1) if ":" in one.method else (False, 0))
    assert len({one.spec for one in found}) == len(found)
    with pytest.raises(ValueError, match="no grid of linx"):
        settings(router, ["linx:slope=1"])
    with pytest.raises(ValueError, match="oea has no knob 'slope'"):
        settings(router, ["oea:slope=1"])
    lines = [line(method, kept, noise(0) * share) | {"split": "test", "kind": "bakeoff"} for method, share in
             (("priced", 1), ("priced:slope=1", 0.5), ("oea", 2)) for kept in (0.3, 0.34)]  # fmt: skip
    titles = [title for title, _, _ in all_comparisons({"results": lines})]
    assert [title.partition(" of ")[2].partition(",")[0] for title in titles if title.startswith("KL")] == [
        "priced", "priced:slope=1"]  # fmt: skip


def test_like_is_compared_with_like_and_with_the_oracle():
    base = noise(0)
    lines = [line(method, kept, base * share) for method, share in
             (("priced", 1), ("oea", 4), ("priced calibrated", 0.5), ("sere", 10), (ORACLE, 0.25))
             for kept in (0.3, 0.34)]  # fmt: skip
    for one in lines:
        calibrated = one["method"] in ("priced calibrated", "sere")
        one |= {"split": "test", "kind": "bakeoff", "spec": one["spec"] + ",data=x" * calibrated}
    free, more_free, with_data, more_with, oracle = comparisons({"results": lines})
    assert all(title.startswith("True token's log-likelihood of priced") for title, _, _ in (more_free, more_with))
    assert [row[1][:4] for _, _, (row,) in (free, with_data, oracle)] == ["0.25", "0.05", "4.00"]
    assert free[2][0][1].endswith(" oea")
    assert with_data[2][0][1].endswith(" sere")
    (alone,) = comparisons({"results": [one for one in lines if one["policy"] in ("oea", ORACLE)]})
    assert "oea" in alone[2][0][1]
    assert "Best published" in alone[0]


def test_a_policy_that_brings_its_data_is_compared_with_those_that_need_none():
    base = noise(0)
    ours = "priced:sensitive=true,data=/somewhere/c.safetensors"
    lines = [line(method, kept, base * share) | {"split": "test", "kind": "bakeoff"} for method, share in
             (("priced", 1), (ours, 0.5), ("oea", 2), (ORACLE, 0.25)) for kept in (0.3, 0.34)]  # fmt: skip
    for one in lines:
        one |= {"spec": one["method"]}
    tables = comparisons({"results": lines}, ours)
    rows = {title: row for title, _, (row,) in tables}
    (best,) = (row for title, row in rows.items() if "best published method's, which was not" in title)
    assert best[1].startswith("0.25")
    assert best[1].endswith(" oea")
    (oracle,) = (row for title, row in rows.items() if "oracle" in title)
    assert oracle[1].startswith("2.00")
    assert all("/somewhere" not in title for title in rows)
    names = [row[0] for _, _, table in front_tables({"results": lines}) for row in table]
    assert "priced:sensitive=true" in names


def test_a_name_without_its_file():
    assert short("priced:sensitive=true,data=/a/b.safetensors norm=mass") == "priced:sensitive=true norm=mass"
    assert short("reap:data=/a/b.safetensors,num_keep=3") == "reap:num_keep=3"
    assert short("exfold:data=/a/b.safetensors") == "exfold"
    assert short("lynx:alpha=4,beta=2") == "lynx:alpha=4,beta=2"
