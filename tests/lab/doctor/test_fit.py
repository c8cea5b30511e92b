"""The fit finds the formula that made the steps, and its predictions are near the truth, noise or none."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_steps import KEEPS, SIZES, kept, own, samples

from lynx_moe.lab.doctor.cells import Cell, cells
from lynx_moe.lab.doctor.findings import ARITHMETIC, HOST, LOADS, findings, speedup, waits_for
from lynx_moe.lab.doctor.fit import Fit, fit

SLOW = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def step_of(a=0.0, b=0.0, c=0.0, d=0.0, e=0.0):
    return lambda rows, experts: max(a + b * experts + e * rows, c + d * rows)


def predictions(step, fitted):
    """(predicted, true) speed-ups of every policy and batch size."""
    for rows in SIZES:
        for policy in KEEPS:
            change = own(rows), kept(policy, rows)
            yield speedup(fitted, rows, *change), step(rows, change[0]) / step(rows, change[1])


def test_a_memory_bound_machine_has_its_own_numbers_back():
    fitted = fit(cells(samples(step_of(a=10, b=0.7)), "vanilla"))
    assert (fitted.a, fitted.b) == pytest.approx((10, 0.7))
    assert fitted.c == fitted.d == fitted.e == 0
    assert fitted.error < 1e-9
    parts = fitted.parts(16, own(16))
    assert parts.loads / parts.ms == pytest.approx(0.7 * own(16) / (10 + 0.7 * own(16)))


def test_what_rows_add_beside_loads_is_told_from_loads():
    fitted = fit(cells(samples(step_of(a=10, b=0.7, e=0.25)), "vanilla"))
    assert (fitted.a, fitted.b, fitted.e) == pytest.approx((10, 0.7, 0.25))


def test_a_machine_that_turns_compute_bound_turns_where_it_does():
    step = step_of(a=4, b=0.5, c=1, d=2)  # 64 experts cost 36 ms: arithmetic takes over where 1 + 2 rows is more
    fitted = fit(cells(samples(step), "vanilla"))
    assert (fitted.a, fitted.b, fitted.c, fitted.d) == pytest.approx((4, 0.5, 1, 2))
    turns = next(rows for rows in range(1, 65) if 1 + 2 * rows > 4 + 0.5 * own(rows))
    assert 16 < turns < 64
    found = findings(samples(step), "priced", "vanilla")
    (first, *_, last) = found["waits"]
    assert first[0] == LOADS
    assert last[0] == ARITHMETIC
    assert last[1] == pytest.approx(turns, abs=2)  # own experts between measured sizes are interpolated
    assert waits_for(fitted, 64, own(64)) == ARITHMETIC


def test_a_host_bound_machine_has_nothing_but_a_constant():
    fitted = fit(cells(samples(lambda rows, experts: 7.0), "vanilla"))
    assert fitted.ms(1, 8) == fitted.ms(64, 127) == pytest.approx(7)
    assert waits_for(fitted, 16, 80) == HOST


def test_a_floor_that_loads_outgrow_is_host_bound_at_small_batches():
    step = step_of(a=2, b=0.5, c=20)
    fitted = fit(cells(samples(step), "vanilla"))
    assert (fitted.b, fitted.c, fitted.d) == pytest.approx((0.5, 20, 0))
    assert [waits_for(fitted, rows, own(rows)) for rows in (1, 4, 8, 32)] == [HOST, HOST, LOADS, LOADS]


@SLOW
@given(
    b=st.floats(0.05, 2),
    a=st.floats(0, 40),
    e=st.sampled_from([0.0, 0.05, 0.2]),
    noise=st.sampled_from([0.0, 0.02, 0.05]),
    seed=st.integers(0, 1000),
)
def test_memory_bound_predictions_are_within_a_tenth(b, a, e, noise, seed):
    step = step_of(a=a, b=b, e=e)
    fitted = fit(cells(samples(step, noise=noise, rounds=7, seed=seed), "vanilla"))
    for predicted, true in predictions(step, fitted):
        assert predicted == pytest.approx(true, rel=0.1)


@SLOW
@given(
    b=st.floats(0.2, 1),
    a=st.floats(0, 10),
    turn=st.sampled_from([12, 24, 40]),
    noise=st.sampled_from([0.0, 0.01, 0.03]),
    seed=st.integers(0, 1000),
)
def test_predictions_across_the_turn_are_within_a_tenth(b, a, turn, noise, seed):
    step = step_of(a=a, b=b, d=(a + b * own(turn)) / turn)
    fitted = fit(cells(samples(step, noise=noise, rounds=7, seed=seed), "vanilla"))
    for predicted, true in predictions(step, fitted):
        assert predicted == pytest.approx(true, rel=0.1)


@SLOW
@given(ms=st.floats(0.1, 100), noise=st.sampled_from([0.0, 0.02, 0.05, 0.1]), seed=st.integers(0, 1000))
def test_a_host_bound_machine_is_told_so_at_any_noise(ms, noise, seed):
    found = findings(samples(lambda rows, experts: ms, noise=noise, rounds=7, seed=seed), "priced", "vanilla")
    assert found["pays"] == []
    assert found["verdict"] == "does not pay here: steps are host-bound"


@SLOW
@given(
    cell=st.lists(
        st.tuples(st.sampled_from(SIZES), st.floats(1, 128), st.floats(0.01, 1e4)), min_size=2, max_size=30, unique=True
    )
)
def test_any_cells_have_a_fit_without_negative_numbers_or_a_reason(cell):
    given_cells = [Cell(rows=r, policy=str(n), experts=x, own=x, ms=ms) for n, (r, x, ms) in enumerate(cell)]
    by_size = {rows: {round(c.experts, 3) for c in given_cells if c.rows == rows} for rows, _, _ in cell}
    if len(by_size) < 2 or max(map(len, by_size.values())) < 2:
        with pytest.raises(ValueError, match="a fit needs two"):
            fit(given_cells)
        return
    fitted = fit(given_cells)
    assert min(fitted.a, fitted.b, fitted.c, fitted.d, fitted.e) >= 0
    assert fitted.ms(8, 40) > 0


def test_one_slow_minute_moves_no_ratio():
    """A round that took twice as long under all policies says as much of them as any other."""
    taken = samples(step_of(a=10, b=0.7))
    slow = [{**s, "tpot_ms": s["tpot_ms"] * (2 if s["round"] in (1, 2) else 1)} for s in taken]
    assert fit(cells(slow, "vanilla")).b == pytest.approx(0.7)


def test_what_decisions_take_is_none_of_the_loads():
    costs = {policy: 0.0 if policy == "vanilla" else 3.0 for policy in KEEPS}
    (found,) = [c for c in cells(samples(step_of(a=10, b=0.7), decision_ms=costs), "vanilla")
                if (c.rows, c.policy) == (16, "priced")]  # fmt: skip
    assert found.ms == pytest.approx(10 + 0.7 * kept("priced", 16))
    assert found.decision_ms == 3
    fitted = Fit(a=10, b=0.7)
    assert speedup(fitted, 16, 80, 40, 3, 1) == pytest.approx((66 + 1) / (38 + 3))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"sizes": (8,)}, "two batch sizes"), ({"policies": ("vanilla",)}, "two policies or more that load different")],
)
def test_samples_that_tell_nothing_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        fit(cells(samples(step_of(a=1, b=1), **options), "vanilla"))


def test_a_round_without_the_baseline_is_refused():
    taken = [s for s in samples(step_of(a=1, b=1)) if (s["policy"], s["round"]) != ("vanilla", 2)]
    with pytest.raises(ValueError, match="rounds without the baseline"):
        cells(taken, "vanilla")
