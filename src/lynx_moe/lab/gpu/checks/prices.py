"""Step "prices": one CUDA graph of a decision, followed through random steps between which nothing is recorded again.

An engine's plan without the engine: it decides once while a graph records, in an idle run as vLLM's are. From then on
only buffers change, by requests at prices, presets and "exact", by the operator's switches, by rungs of a guard, by
prompts and padding. Every replay must say what a fresh decision of the definition says, and leave for a guard what it
would have seen. Then the step is a shadow step: replayed with every row exact and with other prices, which counts
nothing, and as before.
"""

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lynx_moe.control.loss import mass_lost
from lynx_moe.control.options import GuardOptions
from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.engines.vllm.step.rows import take_up
from lynx_moe.engines.vllm.step.shadows.passes import Trial
from lynx_moe.policies import ModelShape, make_policy
from lynx_moe.routing import RouterSpec, Routing, Rows, select

SWITCHES = ("priced", "vanilla", "priced:price=0.3", "priced:price=0.005")
PRICES = {"exact": 0.0, "fast": 0.1, 0.02: 0.02, "0.2": 0.2, 0: 0.0}  # of wishes; all others ask what the server does
WISHES = (None, None, "balanced", *PRICES)
GUARD = GuardOptions(max_mass_lost=0.01, steps=1, layers=1, window=16)
RTOL = 16 * 2.0**-24  # tests/kernels/gpu_cases.py

Decide = Callable[[], Routing]
Capture = Callable[[Decide], tuple[Routing, Callable[[], None]]]


def measure(dry: bool) -> dict[str, Any]:
    """{"steps", "switches", "samples": steps in which a guard's figures were right, "changed": in how many steps a row
    did without an expert, "shadows": of these, the ones replayed in a shadow step}. Dry: on the CPU nothing is
    recorded, decisions are taken again. Raises RuntimeError where a replay says something else."""
    rng, found = random.Random(0), dict.fromkeys(("steps", "switches", "samples", "changed", "shadows"), 0)
    device, capture = torch.device("cpu" if dry else "cuda"), again if dry else cuda_graph
    sizes = ((24, 4, 8),) if dry else ((128, 8, 16), (128, 8, 64), (64, 8, 4), (8, 2, 16), (512, 10, 32))
    for num_experts, top_k, num_rows in sizes:
        for guard in (None, GUARD):
            plan = make_plan("priced", num_experts, top_k, device, guard=guard)
            graph = Followed(plan, num_rows, capture)
            for _ in range(8 if dry else 200):
                if guard is None:
                    found["switches"] += turn(plan, rng)
                wishes, prompts = draw(rng, num_rows)
                expected = graph.step(rng, wishes, prompts)
                wrong = difference(graph.final, expected, len(wishes) if dry else num_rows)  # graphs pad by themselves
                pair = graph.sample(expected, wishes)
                if pair is not None and plan.figures is not None and not wrong:
                    found["samples"] += 1
                    seen = plan.figures.lost[0].tolist()
                    near = all(abs(one - other) < 1e-5 for one, other in zip(seen, pair, strict=True))
                    wrong = "" if near else f"a guard would see {seen}, not {pair}"
                changed = int((graph.final.weights[: len(wishes)] == 0).any())
                wrong = wrong or graph.shadow(expected, len(wishes) if dry else num_rows)
                if wrong:
                    where = f"step {found['steps']}, {num_experts} experts, {num_rows} rows, {plan.policy.spec}"
                    raise RuntimeError(f"a replay is no fresh decision: {wrong} ({where}, {wishes}, {prompts} prompts)")
                found["steps"] += 1
                found["changed"] += changed
                found["shadows"] += changed
    return found


def make_plan(policy: str, num_experts: int, top_k: int, device: torch.device, **given: Any) -> Plan:
    """A plan of one layer, of up to 512 rows, that graphs record."""
    shape = ModelShape(model_type="tiny", num_layers=1, num_experts=num_experts, top_k=top_k, name="tiny")
    plan = Plan(options=Options(policy=policy, **given), shape=shape, max_rows=512, device=device, graphs=True)
    plan.layers.append(Layer(name="layers.0", spec=RouterSpec(num_experts=num_experts, top_k=top_k)))
    plan.seal()
    return plan


def draw(rng: random.Random, num_rows: int) -> tuple[list[Any], int]:
    """What so many requests or fewer ask for, and how many of them are prompts of one token; the rest is padding."""
    wishes = [rng.choice(WISHES) for _ in range(rng.randint(1, num_rows))]
    return wishes, rng.choice((0, 0, 1)) if len(wishes) > 1 else 0


def turn(plan: Plan, rng: random.Random) -> bool:
    """Now and then the operator switches, or the policy gives way as under a guard."""
    number = rng.random()
    if number < 0.15:
        plan.set_policy(rng.choice(SWITCHES))
    elif number < 0.3 and (milder := plan.policy.milder(plan.layers[0].spec)) is not None:
        plan.put(milder, [milder])
    else:
        return False
    return True


class Followed:
    """A plan's decision of `num_rows` rows, recorded in an idle run. `final` is what it says, at every replay anew;
    `rows` are those of the last step, `spread` is what logits are drawn with."""

    def __init__(self, plan: Plan, num_rows: int, capture: Capture) -> None:
        self.plan, self.num_rows, self.spec = plan, num_rows, plan.layers[0].spec
        self.logits = torch.randn(num_rows, self.spec.num_experts, device=plan.device)
        own, self.spread, self.rows = select(self.logits, self.spec), 2.0, Rows()
        self.own = Routing(own.ids.int(), own.weights.clone())
        plan.rows.idle()
        plan.begin_step()
        self.final, self.replay = capture(self._decide)

    def _decide(self) -> Routing:
        return self.plan.reroute(self.logits, self.own.weights, self.own.ids, 0) or self.own

    def step(self, rng: random.Random, wishes: Sequence[Any], prompts: int) -> Routing:
        """A step of so many requests, the first ones with a prompt, is replayed; what it should say."""
        plan, num = self.plan, len(wishes)
        names = [str(rng.random()) for _ in wishes]
        asked = [None if wish is None else {"lynx_moe": wish} for wish in wishes]
        new = [
            SimpleNamespace(req_id=name, sampling_params=SimpleNamespace(extra_args=extra))
            for name, extra in zip(names, asked, strict=True)
        ]
        take_up(plan.requests, SimpleNamespace(scheduled_new_reqs=new, finished_req_ids=set(plan.requests.specs)))
        decodes = np.arange(num) >= prompts
        plan.rows.fill(decodes, np.ones(num, int), plan.requests.choices(names), plan.requests.asked)
        price = torch.zeros(self.num_rows)
        price[:num] = torch.tensor([PRICES.get(wish, plan.policy.asks) for wish in wishes])
        plan.begin_step()  # a guard's change is the next step's
        draws = torch.Generator().manual_seed(rng.randrange(2**31))
        logits = (torch.randn(self.logits.shape, generator=draws) * self.spread).to(plan.device)
        own = select(logits, self.spec)
        now = (logits, own.ids, own.weights)
        for buffer, value in zip((self.logits, self.own.ids, self.own.weights), now, strict=True):
            buffer.copy_(value)
        self.replay()
        place = torch.arange(self.num_rows, device=plan.device)
        valid = place < num
        self.rows = Rows(valid=valid, remap=valid & (place >= prompts), price=price.to(plan.device))
        return make_policy("priced").route(logits, self.spec, self.rows, own)

    def shadow(self, final: Routing, num_rows: int) -> str:
        """The last step, whose right outcome is `final`, as a shadow step: what is wrong in its passes; empty if
        nothing is."""
        plan, rows = self.plan, self.rows
        own = Routing(self.own.ids.long(), self.own.weights)
        price_T = 3 * plan.rows.price_T
        higher = torch.zeros(self.num_rows)
        higher[: len(price_T)] = torch.from_numpy(price_T)
        before = plan.counters.read()
        for trial, price in ((Trial(), torch.zeros(self.num_rows)), (Trial(price_T), higher)):
            asked = Rows(valid=rows.valid, remap=rows.remap, price=price.to(plan.device))
            expected = make_policy("priced").route(self.logits, self.spec, asked, own)
            with plan.instead(trial):
                self.replay()
            wrong = difference(self.final, expected, num_rows)
            if wrong or plan.counters.read() != before:
                return f"a shadow step's pass: {wrong or 'it was counted'}"
        self.replay()
        wrong = difference(self.final, final, num_rows)
        return wrong and f"after a shadow step: {wrong}"

    def sample(self, final: Routing, wishes: Sequence[Any]) -> tuple[float, float] | None:
        """Of the last step, whose right outcome is `final`, the mass lost by the rows that follow the server's policy:
        at this rung, and at the one above. None: a guard takes no sample of it."""
        watch = self.plan.watch
        if watch is None or not watch.layers:
            return None
        served = torch.zeros(self.num_rows, dtype=torch.bool)
        served[: len(wishes)] = torch.tensor([wish in (None, "balanced") for wish in wishes])
        assert self.rows.remap is not None
        rows = Rows(valid=self.rows.valid, remap=self.rows.remap & served.to(self.plan.device))
        own = Routing(self.own.ids.long(), self.own.weights)
        above = watch.ladder[max(watch.guard.rung - 1, 0)][0].route(self.logits, self.spec, rows, own)
        now, higher = (float(mass_lost(own, each, rows)) for each in (final, above))
        return now, higher


def difference(got: Routing, expected: Routing, num_rows: int) -> str:
    """Where the first rows of two decisions part; empty if they do not. Weights may be apart by rounding."""
    same = got.ids.long() == expected.ids
    near = torch.isclose(got.weights, expected.weights, rtol=RTOL, atol=1e-38)
    for name, equal in (("experts", same), ("weights", near)):
        rows = (~equal[:num_rows]).any(-1).nonzero().flatten().tolist()
        if rows:
            return f"other {name} in rows {rows}"
    return ""


def cuda_graph(decide: Decide) -> tuple[Routing, Callable[[], None]]:
    """Records a decision; once it has been taken, so that nothing is compiled meanwhile."""
    decide()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        final = decide()
    return final, graph.replay


def again(decide: Decide) -> tuple[Routing, Callable[[], None]]:
    """Without a GPU: every replay decides again, as in an eager step."""
    made = decide()
    final = Routing(made.ids.clone(), made.weights.clone())

    def replay() -> None:
        now = decide()
        final.ids.copy_(now.ids)
        final.weights.copy_(now.weights)

    return final, replay
