"""Slots: the least recently used goes, turns give the sums of all, and counts are those of a replay."""

import re

import numpy as np
import pytest
import torch
from expert_files import FROM, INNER, E, H, make, packed, there, weights
from torch import Tensor

from lynx_moe.engines.disk import turns
from lynx_moe.engines.disk.amount import Amount
from lynx_moe.engines.disk.reader import Reader
from lynx_moe.engines.disk.slots import HELD, Slots, Sums
from lynx_moe.engines.disk.store import Store
from lynx_moe.lab.replay.cache import loads

K = 4


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("experts")
    make(folder, folder / "f")
    return Reader(folder / "f", FROM)


def kernel(slots: Slots, output: Tensor, hidden: Tensor, weights: Tensor, ids: Tensor) -> None:
    """Adds up in float32 in the order of a row's slots, and rounds once, as vLLM's does."""
    assert ids.dtype == torch.int32
    up, down = (table[ids.long()].float().flip(2) for table in slots.tables)
    inner = torch.einsum("tkih,th->tki", up, hidden.float())
    inner = (torch.nn.functional.silu(inner[..., :INNER]) * inner[..., INNER:]).bfloat16().float()
    each = torch.einsum("tkhi,tki->tkh", down, inner)
    total = torch.zeros_like(each[:, 0])
    for k in range(ids.shape[1]):
        total += weights[:, k, None] * each[:, k]
    output.copy_(total)


def step(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [T, H], weights [T, K], ids [T, K] of distinct experts in a row."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.rand(rows, E, generator=rng).topk(K, -1).indices.int()
    return torch.randn(rows, H, generator=rng).bfloat16(), torch.rand(rows, K, generator=rng), ids


def run(slots: Slots, sums: Sums, rows: int, seed: int) -> Tensor:
    hidden, weights_TK, ids = step(rows, seed)
    output = torch.full_like(hidden, float("nan"))
    turns.compute(slots, sums, lambda *given: kernel(slots, *given), output, hidden, weights_TK, ids)
    return output


@pytest.mark.parametrize("count", [4, 5, 8, 11])
def test_few_slots_compute_what_many_do(reader: Reader, count: int) -> None:
    """In one turn bit for bit; in several within two roundings to bfloat16 of every expert's share."""
    whole, few, sums = Slots(reader, 0, E), Slots(reader, 0, count), Sums()
    for seed, rows in enumerate((1, 2, 7, 1, 30)):
        expected, got = run(whole, Sums(), rows, seed), run(few, sums, rows, seed)
        if len(step(rows, seed)[2].unique()) <= count:
            assert torch.equal(got, expected)
        else:
            assert torch.allclose(got.float(), expected.float(), atol=2**-7 * float(expected.abs().max()), rtol=0)
    assert sums.rounds == sum(len(step(rows, seed)[2].unique()) > count for seed, rows in enumerate((1, 2, 7, 1, 30)))
    assert sums.bytes == sums.loads * reader.layers[0].expert_bytes


def test_answers_hang_on_the_step_alone(reader: Reader) -> None:
    """Whatever was in memory before it, in turns too."""
    answers = []
    for before in (0, 1, 2):
        slots = Slots(reader, 0, 5)
        for seed in range(before):
            run(slots, Sums(), 1, 100 + seed)
        answers.append(run(slots, Sums(), 16, 7))
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_an_expert_of_a_step_is_read_once_and_what_is_there_not_at_all(reader: Reader) -> None:
    slots, sums = Slots(reader, 0, 5), Sums()
    run(slots, sums, 16, 7)
    needed = len(step(16, 7)[2].unique())
    assert (sums.loads, sums.hits, sums.rounds) == (needed, 0, 1)
    run(slots, sums, 16, 7)
    assert (sums.loads, sums.hits, sums.rounds) == (2 * needed - 5, 5, 2)


def test_counts_are_those_of_a_replayed_cache(reader: Reader) -> None:
    """Where a step fits into the slots."""
    steps = [step(rows, seed)[2].unique().numpy() for seed, rows in enumerate((1, 2, 1, 1, 2, 2, 1, 1, 1, 2))]
    used = torch.zeros(1, len(steps), E, dtype=torch.bool)
    for number, wanted in enumerate(steps):
        used[0, number, torch.from_numpy(wanted).long()] = True
    slots, found = Slots(reader, 0, 8), []
    for wanted in steps:
        sums = Sums()
        slots.hold(wanted, sums)
        found.append(sums.loads)
    assert found == loads(used, 8)[0].tolist()
    assert sum(found) < used.sum()


def test_the_longest_unused_goes_first(reader: Reader) -> None:
    slots = Slots(reader, 1, 3)
    for wanted in ([0, 1, 2], [0], [3], [1]):
        slots.hold(np.array(wanted), Sums())
    assert np.flatnonzero(there(slots)).tolist() == [0, 1, 3]
    assert torch.equal(slots.tables[0][slots.slot_E[3]], packed(weights()[1])[0][3])


def test_a_store_counts_by_kind_of_step(reader: Reader) -> None:
    store = Store(reader, [4, 6])
    store.begin("prefill")
    store.layers[0].hold(np.array([1, 2]), store.sums)
    store.begin("decode")
    store.layers[1].hold(np.array([1, 2, 3]), store.sums)
    told = store.told()
    assert (told["slots"], told["experts"], told["slot_bytes"]) == (10, 2 * E, 10 * reader.layers[0].expert_bytes)
    assert told["steps"]["prefill"]["loads"] == 2
    assert told["steps"]["decode"]["loads"] == 3
    store.reset()
    assert store.told()["steps"] == {"decode": {"loads": 0, "hits": 0, "bytes": 0, "seconds": 0.0, "rounds": 0}}
    store.layers[1].hold(np.array([1, 2, 3]), store.sums)
    assert store.sums.hits == 3


def test_what_is_there_costs_less(reader: Reader) -> None:
    store = Store(reader, [4, 6])
    assert torch.equal(store.load_cost("layers.1"), torch.ones(E))
    store.layers[1].hold(np.array([1, 2, 3]), store.sums)
    assert store.load_cost("layers.1").tolist() == [1, HELD, HELD, HELD, *[1] * (E - 4)]
    assert store.load_cost("layers.0").tolist() == [1] * E


@pytest.mark.parametrize(
    ("given", "slots"),
    [(32, 32), ("32", 32), ("500", 128), ("25%", 32), ("12.5 %", 16), ("100%", 128), ("1GiB", 64), ("0.5GiB", 32)],
)
def test_amounts(given: object, slots: int) -> None:
    assert Amount.of(given).slots(128, 8, layers=4, expert_bytes=2**22) == slots


@pytest.mark.parametrize("given", [0, -1, 1.5, True, None, "", "x", "1.5", "0%", "101%", "4GB", "4 gib", [], "0GiB"])
def test_amounts_that_are_none(given: object) -> None:
    with pytest.raises(ValueError, match=r"experts_resident=.* must be .*32"):
        Amount.of(given)


@pytest.mark.parametrize("given", [7, "5%", "0.1GiB"])
def test_fewer_than_a_row_takes(given: object) -> None:
    with pytest.raises(ValueError, match=r"fewer than the 8 that one row takes; the least is 8, 6.25% or 0.125GiB"):
        Amount.of(given).slots(128, 8, layers=4, expert_bytes=2**22)


@pytest.mark.parametrize(("experts", "top_k"), [(60, 8), (60, 4), (12, 7), (64, 8), (160, 6), (384, 8), (3, 1), (8, 8)])
@pytest.mark.parametrize("expert_bytes", [3 * 128 * 32 * 2, 3 * 2048 * 768 * 2, 12_345_677])
def test_the_least_amount_that_an_error_names_is_enough(experts: int, top_k: int, expert_bytes: int) -> None:
    shape = (experts, top_k, 47, expert_bytes)
    for little in ("0.001%", "0.000001GiB"):
        with pytest.raises(ValueError, match=r"fewer than the .* that one row takes; the least is") as caught:
            Amount.of(little).slots(*shape)
        least = re.split(", | or ", str(caught.value).rpartition("the least is ")[2])
        assert [Amount.of(one).slots(*shape) for one in least] == [top_k] * 3, least


def test_a_share_that_comes_out_even_is_that_many() -> None:
    assert [Amount.of(f"{percent}%").slots(100, 1, 1, 1) for percent in range(1, 101)] == list(range(1, 101))
