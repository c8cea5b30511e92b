"""Fronts: what is on them, what lies between, and intervals that belong together."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_moe.lab.bakeoff.findings import comparisons
from lynx_moe.lab.bakeoff.fronts import fronts, lowest, pareto, ratios
from lynx_moe.lab.bakeoff.grids import GRIDS, ORACLE, budgets, settings
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
    found = np.exp(lowest(kept, np.log(kl), (0.1, 0.2, 0.3, 0.5, 0.9)))
    np.testing.assert_allclose(found, [np.nan, 1, 0.1, 1e-3, 1e-4])


def line(method: str, kept: float, kl: np.ndarray, mix: str = "mixed", **more: Any) -> dict[str, Any]:
    """kl: of each sequence."""
    shown = {"kl": kl.mean(), "kl_interval": [0, 1], "agree": 1.0, "kl_by_sequence": kl.tolist()}
    where = {"batch_size": 16, "mix": mix, "before": 10.0, "after": 10 * kept, "steps_by_sequence": [3] * SEQUENCES}
    return {"policy": method.split()[0], "method": method, "spec": f"{method}:{kept}", **where, **shown, **more}


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(size=SEQUENCES)


def test_intervals_hold_the_mean_and_ratios_are_paired():
    base = noise(0)
    lines = [
        line("oea", 0.3, base),
        line("oea", 0.7, base / 100),
        line("oea", 0.6, base),
        line("oea", 0.9995, base / 1e4),
    ]
    lines += [line("ours", 0.3, base / 2), line("ours", 0.7, base / 200), line("lynx", 0.5, 9 * noise(1))]
    found = {one["method"]: one for one in fronts(lines)}
    assert [setting["spec"] for setting in found["oea"]["settings"]] == ["oea:0.3", "oea:0.7"]
    at = found["oea"]["at"]
    assert at[0.5]["kl"] == pytest.approx(base.mean() / 10)
    assert at[0.8]["kl"] == pytest.approx(base.mean() / 100)
    low, high = at[0.5]["interval"]
    assert 1.1 * low < at[0.5]["kl"] < high / 1.1
    assert found["lynx"]["at"][0.4] is None
    rows = ratios(list(found.values()), "ours", ["oea", "lynx", "ours"])
    assert [row["fraction"] for row in rows] == [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
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
    assert set(GRIDS) == set(POLICIES) - {"vanilla"}
    free = {one.method.split()[0] for one in settings(router)}
    assert free == {*GRIDS, ORACLE} - {"sere", "exfold", "reap"}
    assert {one.method.split()[0] for one in settings(router, [ORACLE, "oea"])} == {ORACLE, "oea"}
    with pytest.raises(ValueError, match="no grid of linx"):
        settings(router, ["linx"])
    with pytest.raises(ValueError, match="need --calibration"):
        settings(router, ["reap"])


def test_like_is_compared_with_like_and_with_the_oracle():
    base = noise(0)
    lines = [line(method, kept, base * share) for method, share in
             (("priced", 1), ("oea", 4), ("priced calibrated", 0.5), ("sere", 10), (ORACLE, 0.25))
             for kept in (0.3, 0.9)]  # fmt: skip
    for one in lines:
        calibrated = one["method"] in ("priced calibrated", "sere")
        one |= {"split": "test", "kind": "bakeoff", "spec": one["spec"] + ",data=x" * calibrated}
    free, with_data, oracle = comparisons({"results": lines})
    assert [row[1][:4] for _, _, (row,) in (free, with_data, oracle)] == ["0.25", "0.05", "4.00"]
    assert free[2][0][1].endswith(" oea")
    assert with_data[2][0][1].endswith(" sere")
    (alone,) = comparisons({"results": [one for one in lines if one["policy"] in ("oea", ORACLE)]})
    assert "oea" in alone[2][0][1]
    assert "Best published" in alone[0]
