"""The GPU kernels equal the plain-torch policies: ids exactly, weights within float32 rounding, counts exactly.

Not collected by itself. On a machine without a GPU `test_gpu.py` runs it under Triton's interpreter; with one:
python -m pytest tests/kernels/gpu_cases.py
"""

import itertools
from dataclasses import replace

import pytest
import torch
from cases import KINDS, SCHEMES, make_calibration, make_costs, make_logits, make_spec

from lynx_moe import RouterSpec, Routing, Rows, make_policy
from lynx_moe.kernels import gpu
from lynx_moe.kernels.gpu import launch
from lynx_moe.policies import ModelShape
from lynx_moe.routing import select

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
POLICIES = [
    "lynx",
    "lynx:alpha=3,beta=2",
    "oea:k0=2",
    "xshare:budget=8,k0=1",
    "lynx:alpha=0.7,beta=1,pin_top1=true",
    "lynx-v1",
    "random:num_keep=8,seed=3",
    "xshare:alpha=0.5",
    "lynx:beta=4",
    "lynx-v1:num_keep=8",
    "lynx-v1:mode=confidence,threshold=0.2",
    "oea:k0=1",
    "lynx:alpha=1,beta=0",
    "reap:share=0.5",
    "priced",
    "priced:num_keep=8",
    "priced:price=0.3,slope=2",
    "priced:price=0.3,norm=own",
    "priced:price=30,norm=own=1",
]
SIZES = (
    [(7, 60), (3, 64), (16, 128), (64, 128), (5, 256), (256, 128)] if ON_GPU else [(7, 60), (2, 12), (3, 64), (5, 4)]
)
ROUTERS = [scheme for scheme in SCHEMES if "sparsemixer" not in scheme]
MASKS = ("none", "some", "one_decodes", "no_valid", "no_remap", "prices", "prices_alone", "drafts", "prices_drafts")
MASKS += ("costs", "prices_costs")
TIERS = torch.tensor([0.0, 0.01, 0.03, 0.1, 0.5, 50.0])
# Every policy, size and scheme with several of the others; a GPU compiles each of them for seconds, so it has fewer.
STEPS = [
    (policy, SIZES[n % len(SIZES)], ROUTERS[(n + n // len(ROUTERS)) % len(ROUTERS)])
    for n, policy in enumerate((POLICIES * 3)[: 32 if ON_GPU else None])
]
# The definition's softmax of K <= 8 float32 logits: exponentials, their sum, a division, a product. The kernel's: one
# rounding from float64.
RTOL = 16 * 2.0**-24


def make_masks(kind: str, num_rows: int, num_experts: int, rng: torch.Generator) -> Rows | None:
    """As an engine holds them: parts of longer buffers."""
    if kind == "none":
        return None
    valid, remap = (torch.rand(num_rows + 9, generator=rng) < share for share in (0.8, 0.7))
    if kind == "one_decodes":
        remap = torch.arange(num_rows + 9) == 1
    valid, remap = valid & (kind != "no_valid"), remap & (kind != "no_remap")
    price = None
    if kind.startswith("prices"):
        price = TIERS[torch.randint(len(TIERS), (num_rows + 9,), generator=rng)].to(DEVICE)[:num_rows]
    if kind == "prices_alone":
        valid = torch.arange(num_rows + 9) == num_rows // 2
    chance = torch.rand(num_rows, generator=rng).clamp(min=0.01).to(DEVICE) if kind.endswith("drafts") else None
    cost = make_costs(num_experts, rng).to(DEVICE) if kind.endswith("costs") else None
    parts = {"price": price, "chance": chance, "load_cost_E": cost}
    return Rows(valid=valid.to(DEVICE)[:num_rows], remap=remap.to(DEVICE)[:num_rows], **parts)


def poisoned(function):
    """torch.empty and its like, handing over what no kernel may read."""

    def fill(*args, **kwargs):
        tensor = function(*args, **kwargs)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else 2**31 - 5)

    return fill


def make_step(text: str, size: tuple[int, int], scheme: str, kind: str, seed: int):
    rng = torch.Generator().manual_seed(seed)
    num_rows, num_experts = size
    spec = make_spec(scheme, num_experts, rng)
    tensors = {name: getattr(spec, name) for name in ("bias", "expert_scale")}
    tensors = {name: tensor if tensor is None else tensor.to(DEVICE) for name, tensor in tensors.items()}
    spec = RouterSpec(**{**vars(spec), **tensors})
    logits = make_logits(kind, num_rows, num_experts, rng)
    logits = logits.half() if kind == "flat" else logits
    wide = torch.full((num_rows, num_experts + 3), torch.nan, dtype=logits.dtype, device=DEVICE)
    wide[:, :num_experts] = logits.to(DEVICE)
    text = text.replace("=8", f"={min(num_experts, 8)}")
    calibration = {name: tensor.to(DEVICE) for name, tensor in make_calibration(num_experts).items()}
    policy = make_policy(text)
    if seed % 2 or not getattr(policy, "optional", False):
        policy = policy.for_layer(0, {0: calibration})
    return policy, wide[:, :num_experts], spec, rng


def recount(own: Routing, final: Routing, rows: Rows | None, num_experts: int) -> list[int]:
    keep = slice(None) if rows is None else rows.valid
    before, after = own.ids[keep], final.ids[keep].to(own.ids.dtype)
    changed = int((before != after).any(-1).sum())
    return [len(before.unique()), len(after.unique()), changed, int(changed == 0)]


@pytest.mark.parametrize("number", range(len(STEPS)), ids=lambda n: "-".join(map(str, STEPS[n])))
def test_the_kernels_decide_as_the_definition_does(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(launch.torch, name, poisoned(getattr(torch, name)))
    pairs = list(itertools.product(KINDS, MASKS))
    chosen = pairs if ON_GPU else [pairs[(7 * number + 13 * n) % len(pairs)] for n in range(3)]
    for seed, (kind, masks) in enumerate(chosen):
        policy, logits, spec, rng = make_step(*STEPS[number], kind, seed=1000 * number + seed)
        rows, own = make_masks(masks, *logits.shape, rng), select(logits, spec)
        marked = Routing(own.ids.int(), own.weights * 1.5)  # an engine's own: what stays must be just that
        expected, got = policy.route(logits, spec, rows, marked), policy.decide(logits, spec, rows, marked)
        assert isinstance(got.counts, torch.Tensor), "no kernel took it"
        assert got.ids.dtype == torch.int32
        assert torch.equal(got.ids.long(), expected.ids), (kind, masks)
        torch.testing.assert_close(got.weights, expected.weights, rtol=RTOL, atol=1e-38, equal_nan=True)
        same = (expected.ids == own.ids).all(-1) if rows is None else rows.valid & (expected.ids == own.ids).all(-1)
        bits = [weights[same].view(torch.int32) for weights in (got.weights, expected.weights)]
        assert torch.equal(*bits)
        assert got.counts.tolist() == recount(own, expected, rows, spec.num_experts)


def test_a_step_that_would_load_more_keeps_the_model_s_own_routing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[9.0, 8, 1, 0, 2, 0], [9, 8, 0, 1, 0, 2], [0, 0, 0, 0, 0, 0]], device=DEVICE)
    spec, rows = RouterSpec(num_experts=6, top_k=2), Rows(valid=torch.tensor([False, True, True], device=DEVICE))
    rows = Rows(valid=rows.valid.flip(0))
    own, keep = select(logits, spec), torch.tensor([0, 0, 1, 1, 1, 1], device=DEVICE).bool()
    got = gpu.decide(logits, spec, rows, own, gpu.Vote(rule="given", given_E=keep))
    assert got.ids.tolist() == [[0, 1], [0, 1], [0, 1]]
    assert torch.equal(got.weights[:2], own.weights[:2])
    assert got.weights[2].tolist() == [0, 0]
    assert got.counts.tolist() == [2, 2, 0, 1]


def test_a_row_alone_is_left_alone() -> None:
    logits, spec = torch.arange(6.0, device=DEVICE)[None], RouterSpec(num_experts=6, top_k=2)
    vote = gpu.Vote(rule="given", given_E=torch.arange(6, device=DEVICE) < 3)
    got = gpu.decide(logits, spec, None, select(logits, spec), vote)
    assert got.ids.tolist() == [[5, 4]]
    assert got.counts.tolist() == [2, 2, 0, 1]


def test_an_open_alpha_follows_the_lower_of_the_middle_gaps() -> None:
    spread = torch.tensor([0.1, 0.5, 4, 16], device=DEVICE)[:, None]
    policy, logits, spec, _ = make_step("lynx", (4, 60), "softmax", "normal", 5)
    logits = logits * spread
    expected, got = policy.route(logits, spec), policy.decide(logits, spec)
    assert torch.equal(got.ids, expected.ids)
    assert got.counts[2] > 0


def test_rows_that_do_not_vote_have_no_say_between_experts_of_a_bin() -> None:
    """With a selection bias even a row of zeros would prefer some; this step was found to differ then."""
    policy, logits, spec, _ = make_step("lynx", (16, 60), "sigmoid_bias", "normal", 0)
    rows, own = Rows(remap=torch.arange(16, device=DEVICE) < 4), select(logits, spec)
    assert torch.equal(policy.decide(logits, spec, rows, own).ids, policy.route(logits, spec, rows, own).ids)


def test_half_of_an_odd_number_of_voted_experts_is_rounded_up() -> None:
    votes, spec = [[0, 1], [0, 2], [0, 3], [1, 4], [0, 1]], RouterSpec(num_experts=6, top_k=2)
    logits = torch.zeros(5, 6).scatter(1, torch.tensor(votes), 5.0).to(DEVICE)
    got = make_policy("lynx-v1").decide(logits, spec)
    assert got.ids.unique().tolist() == [0, 1, 2]
    assert torch.equal(got.ids, make_policy("lynx-v1").route(logits, spec).ids)


@pytest.mark.parametrize("text", ["priced:price=30", "oea:k0=1"])
def test_a_row_with_an_infinite_logit_keeps_its_routing_and_donates(text: str) -> None:
    policy, logits, spec, _ = make_step(text, (7, 60), "softmax", "normal", 4)
    logits[2, 5] = torch.inf
    expected, got = policy.route(logits, spec), policy.decide(logits, spec)
    assert torch.equal(got.ids, expected.ids)
    assert torch.equal(got.ids[2], select(logits, spec).ids[2])
    assert got.counts[2] > 0


@pytest.mark.parametrize("price", [0.03, 0.3, 5.0])
def test_priced_asks_a_share_of_a_row_alone_whoever_says_the_price(price: float) -> None:
    first = torch.arange(8, device=DEVICE) < 1
    for seed in range(8):
        _, logits, spec, _ = make_step("priced", (8, 60), "softmax", "normal", seed)
        for text, price_T in ((f"priced:price={price}", None), ("priced", first * price)):
            policy, rows = make_policy(text), Rows(valid=first, remap=first, price=price_T)
            expected, got = policy.route(logits, spec, rows), policy.decide(logits, spec, rows)
            assert torch.equal(got.ids, expected.ids)


@pytest.mark.parametrize("text", ["priced", "priced:price=0.3,slope=1"])
def test_priced_asks_less_for_what_is_in_memory(text: str) -> None:
    fewer = 0
    for seed in range(4):
        policy, logits, spec, rng = make_step(text, (7, 60), "softmax", "normal", seed)
        rows = make_masks(("costs", "prices_costs")[seed % 2], *logits.shape, rng)
        expected, got = policy.route(logits, spec, rows), policy.decide(logits, spec, rows)
        assert isinstance(got.counts, torch.Tensor), "no kernel took it"
        assert torch.equal(got.ids.long(), expected.ids)
        whole = replace(rows, load_cost_E=torch.ones(60, device=DEVICE))
        dear, flat = (policy.decide(logits, spec, each) for each in (whole, replace(rows, load_cost_E=None)))
        assert torch.equal(dear.ids, flat.ids)
        assert torch.equal(dear.weights, flat.weights)
        fewer += int(flat.counts[1] < got.counts[1])
    assert fewer > 1


@pytest.mark.parametrize("num_rows", [1, 13])
def test_priced_asks_a_part_of_any_price_where_layers_differ(num_rows: int) -> None:
    deep = ModelShape(model_type="x", num_layers=30, num_experts=60, top_k=4)
    for seed in range(4):
        _, logits, spec, rng = make_step("priced", (num_rows, 60), "softmax", "normal", seed)
        policy = make_policy("priced:price=0.4,ends=true").for_model(deep).at_layer((0, 1, 5, 29)[seed])
        if seed % 2:
            layers = {
                n: {"sensitivity": (1 + n) * torch.rand(60, generator=rng) + 0.1, "load": torch.ones(60)}
                for n in range(9)
            }
            on_device = {n: {name: one.to(DEVICE) for name, one in layer.items()} for n, layer in layers.items()}
            policy = make_policy("priced:price=0.4,sensitive=true,slope=1").for_layer((0, 1, 4, 8)[seed], on_device)
            assert policy.part != 1
        for price_T in (None, (torch.rand(num_rows, generator=rng) + 0.01).to(DEVICE)):
            expected, got = (
                policy.route(logits, spec, Rows(price=price_T)),
                policy.decide(logits, spec, Rows(price=price_T)),
            )
            assert isinstance(got.counts, torch.Tensor), "no kernel took it"
            assert torch.equal(got.ids.long(), expected.ids)


def test_inputs_are_never_written_to_nor_given_back() -> None:
    policy, logits, spec, _ = make_step("lynx:alpha=1,beta=1", (7, 60), "softmax", "normal", 3)
    own, rows = select(logits, spec), Rows(valid=torch.arange(7, device=DEVICE) < 5)
    before = [tensor.clone() for tensor in (logits, own.ids, own.weights, rows.valid)]
    got = policy.decide(logits, spec, rows, own)
    assert got.counts[2] > 0
    assert all(map(torch.equal, before, (logits, own.ids, own.weights, rows.valid)))
    alone = policy.decide(logits[:1], spec, None, Routing(own.ids[:1], own.weights[:1]))
    for result in (got, alone):  # a custom operator's outputs must not alias its inputs
        assert result.ids.data_ptr() != own.ids.data_ptr()
        assert result.weights.data_ptr() != own.weights.data_ptr()


def routed(weights: list[list[float]], ids: list[list[int]]) -> Routing:
    return Routing(torch.tensor(ids, device=DEVICE), torch.tensor(weights, device=DEVICE))


def test_priced_s_row_that_would_lose_all_keeps_its_heaviest_and_of_equals_the_lowest_id() -> None:
    own = routed([[0.2, 0.4, 0.4], [0.5, 0.25, 0.25], [0.3, 0.3, 0.4]], [[4, 3, 1], [0, 1, 2], [5, 2, 3]])
    spec, policy = RouterSpec(num_experts=6, top_k=3), make_policy("priced:price=1e9,norm=own=1")
    got = policy.decide(torch.zeros(3, 6, device=DEVICE), spec, None, own)
    assert got.ids.tolist() == [[0, 3, 1], [0, 3, 1], [0, 1, 3]]  # in the rest what others keep
    assert got.weights.round(decimals=6).tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1]]
    assert got.counts.tolist() == [6, 3, 3, 0]


def test_priced_compares_harm_as_float32_and_keeps_only_what_lies_above_the_price() -> None:
    """Two rows lose one expert each, of v = 1/64: the harm of each is v + 1000 v^3."""
    spec, own = RouterSpec(num_experts=4, top_k=2), routed([[0.875, 0.125], [0.875, 0.125]], [[0, 1], [0, 2]])
    harm = torch.tensor(2.0**-6 + 1000 * 2.0**-18)
    for price, kept in ((harm, 1), (harm.nextafter(torch.tensor(0.0)), 3)):
        policy = make_policy(f"priced:price={price.item()!r}")
        got = policy.decide(torch.zeros(2, 4, device=DEVICE), spec, None, own)
        assert torch.equal(got.ids, policy.route(torch.zeros(2, 4, device=DEVICE), spec, None, own).ids)
        assert got.counts[1] == kept


def test_priced_counts_donated_experts_as_no_loss() -> None:
    """Were expert 0 lost to the voters, experts 2 and 3 would add 552 to the harm each, and not 532."""
    own = routed([[0.1, 0.9], [0.1, 0.9], [0.5, 0.5]], [[0, 2], [0, 3], [0, 1]])
    spec, rows = RouterSpec(num_experts=6, top_k=2), Rows(remap=torch.arange(3, device=DEVICE) < 2)
    got = make_policy("priced:price=540").decide(torch.zeros(3, 6, device=DEVICE), spec, rows, own)
    assert got.ids.tolist() == [[0, 1], [0, 1], [0, 1]]


def test_priced_asks_the_voters_only_what_an_expert_is_worth() -> None:
    """Padding would be worth 16 to expert 2 where the price is 10; a donor would put expert 0 before expert 2."""
    spec, on = RouterSpec(num_experts=6, top_k=2), torch.arange(3, device=DEVICE) < 2
    cases = (
        ("priced:price=10", Rows(valid=on), [[0.6, 0.4], [0.6, 0.4], [0.5, 0.5]], [[0, 2], [0, 3], [2, 3]]),
        ("priced:num_keep=1", Rows(remap=on), [[0.4, 0.6], [0.6, 0.4], [0.99, 0.01]], [[0, 2], [2, 3], [0, 1]]),
    )
    # The first: 0 alone is loaded, and repeated. The second: expert 3 went, its slot holds 0, which the donor loads.
    expected = [[[0, 0], [0, 0], [0, 0]], [[0, 2], [2, 0], [0, 1]]]
    for (text, rows, weights, ids), final in zip(cases, expected, strict=True):
        got = make_policy(text).decide(torch.zeros(3, 6, device=DEVICE), spec, rows, routed(weights, ids))
        assert got.ids.tolist() == final


@pytest.mark.parametrize("text", ["priced:price=0.2", "priced:num_keep=30"])
def test_priced_sums_over_more_rows_than_a_tile_has(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SLOT_TILE", 64)
    monkeypatch.setattr(launch, "TILE", 1024)
    policy, logits, spec, _ = make_step(text, (37, 64), "sigmoid_bias", "normal", 1)
    expected, got = policy.route(logits, spec), policy.decide(logits, spec)
    assert torch.equal(got.ids, expected.ids)
    assert got.counts[1] < got.counts[0]


@pytest.mark.skipif(not ON_GPU, reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("text", ["priced", "lynx", "oea:k0=2", "xshare:budget=20", "lynx-v1", "random:num_keep=8"])
def test_a_graph_follows_its_masks_prices_and_logits(text: str) -> None:
    policy, logits, spec, rng = make_step(text, (16, 128), "softmax", "normal", 0)
    logits = logits.contiguous()
    rows = Rows(
        valid=torch.ones(16, dtype=torch.bool, device=DEVICE),
        remap=torch.ones(16, dtype=torch.bool, device=DEVICE),
        price=torch.ones(16, device=DEVICE),
        chance=torch.ones(16, device=DEVICE),
    )
    own = select(logits, spec)
    policy.decide(logits, spec, rows, own)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = policy.decide(logits, spec, rows, own)
    for kind in ("normal", "ties", "nan", "normal"):
        logits.copy_(make_logits(kind, 16, 128, rng))
        now = select(logits, spec)
        own.ids.copy_(now.ids)
        own.weights.copy_(now.weights)
        for mask in (rows.valid, rows.remap):
            mask.copy_(torch.rand(16, generator=rng) < 0.7)
        rows.price.copy_(TIERS[torch.randint(len(TIERS), (16,), generator=rng)])
        rows.chance.copy_(torch.rand(16, generator=rng).clamp(min=0.01))
        graph.replay()
        assert torch.equal(got.ids.long(), policy.route(logits, spec, rows, own).ids)
