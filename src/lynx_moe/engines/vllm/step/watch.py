"""The quality guard at work in one engine: it takes the samples, and puts the rung's policy in the plan.

Which steps and layers are sampled follows from the number of the step alone, and so does the step at which a sample is
acted on: every tensor-parallel rank changes the policy at the same step. On a GPU the figures travel meanwhile, so
the host waits for nothing that is not done long since. Under CUDA graphs samples are not taken here, but in the graph
(`figures.py`), and its rungs are prices of what was recorded.
"""

import logging
import time
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lynx_moe.control.guard import Change, Guard
from lynx_moe.control.loss import mass_lost, output_error
from lynx_moe.control.options import GuardOptions
from lynx_moe.control.sampling import due
from lynx_moe.engines.shared.late import Late
from lynx_moe.engines.shared.step.tiers import follows, reach
from lynx_moe.engines.vllm.step.figures import Figures, check_graphs
from lynx_moe.engines.vllm.step.guarded import Guarded
from lynx_moe.engines.vllm.step.shadow import block_output, same_on_all_ranks
from lynx_moe.engines.vllm.step.shadows.passes import ABOVE, Trial
from lynx_moe.engines.vllm.step.shadows.sample import Sample
from lynx_moe.policies import Policy
from lynx_moe.routing import Routing, Rows

logger = logging.getLogger("vllm.lynx_moe")
LAG = 8  # steps that a figure may take from the device to the host


class Watch:
    """See the module; `asked` is the policy that is guarded. Raises ValueError for a ladder that does not fit, and for
    what CUDA graphs or data parallelism do not let it do.

    `seconds` is what the guard has cost the host so far, the shadow steps included.
    """

    def __init__(self, options: GuardOptions, plan: Guarded, asked: Policy) -> None:
        if plan.graphs:
            check_graphs(options, plan.figures)
        if options.max_error is not None and plan.meets:
            raise ValueError(
                "guard: max_error runs a layer's experts once more now and then, and data-parallel engines meet in "
                "every layer, where they settle whole passes only; bound max_mass_lost or max_kl instead"
            )
        if options.max_kl is not None and plan.shadows is None:
            raise ValueError(
                "guard: max_kl is measured in shadow steps, and this engine has none; start it with shadow="
            )
        self.options, self.plan = options, plan
        self.inside = plan.figures if plan.graphs else None
        self.lag = LAG if plan.device.type == "cuda" else 1
        self.step, self.seconds = 0, 0.0
        self.layers: range = range(0)
        self.guard = Guard(options, 1)
        self.taken: list[tuple[str, Tensor]] = []  # of this step: the figure, at this rung and the one above
        self.travelling: deque[tuple[int, str, Late]] = deque()  # the step at which a sample is acted on
        self.restart(asked)

    def restart(self, asked: Policy) -> None:
        """A new ladder, whose rung 0 is the policy that is asked for."""
        plan = self.plan
        rungs = [rung.for_model(plan.shape) for rung in self.options.rungs(asked, plan.layers[0].spec)]
        if self.options.ladder is None:  # else what was asked for is refused
            rungs = [rung for rung in rungs if follows(plan.recorded, rung)]
        for rung in rungs:
            reach(plan.recorded, rung, rung.spec)
        self.ladder = [(rung, plan.fitted(rung)) for rung in rungs]
        self.guard.climb(len(self.ladder))
        self.number = plan.searches = plan.searches + 1
        self._forget()

    def state(self) -> dict[str, Any]:
        """Where the guard stands, in plain numbers; the figures are running means of this rung and the one above."""
        guard = self.guard
        return {
            "rung": guard.rung,
            "rungs": [policy.spec for policy, _ in self.ladder],
            "bounds": self.options.bounds,
            "now": {name: one.mean for name, one in guard.now.items()},
            "above": {name: one.mean for name, one in guard.above.items() if guard.rung},
            "samples": dict(guard.samples),
            "changes": dict(guard.changes),
            "seconds": self.seconds,
        }

    def begin_step(self, *, acts: bool) -> None:
        """A step comes; `acts`: the policy has rows to act on."""
        if self.inside is not None and self.layers:
            self.taken = [
                ("mass_lost", lost)
                for lost, layer in zip(self.inside.lost, self.layers, strict=True)
                if self._reaches(layer)
            ]
        if self.taken:
            self._send()
        if not acts:
            self.layers, self.shadow = range(0), -1
            return
        self.step += 1
        before = self.guard.rung
        while self.travelling and self.travelling[0][0] <= self.step:
            _, figure, numbers = self.travelling.popleft()
            now, above = numbers.take()
            change = self.guard.add(figure, now, above if self.guard.rung else None)
            if change is not None:
                self._change(change)
        priced = self.plan.rows.always or self.plan.rows.mixed
        if self.guard.rung != before and priced:  # the rows of this step ask already what they did before
            return
        count = len(self.plan.layers)
        number = due(self.step, self.options.steps)
        if self.inside is not None:
            self.layers, self.shadow = self._ask(self.inside) if number else range(0), -1
            return
        stride = min(count, round(1 / self.options.layers))
        mass = number and self.options.max_mass_lost is not None
        self.layers = range(number % stride, count, stride) if mass else range(0)
        number = due(self.step, self.options.shadow_steps)
        self.shadow = number % count if number and self.options.max_error is not None else -1

    @property
    def at(self) -> tuple[int, ...]:
        """What stands, as samples of it are known by: this ladder, and how often its rung has changed."""
        return self.number, *self.guard.changes.values()

    def trials(self) -> tuple[Any, dict[str, Trial]]:
        """What a shadow step tries, the rung above, and what its sample is then told by."""
        at, rows = self.at, self.plan.rows
        server_T = rows.remap_T if rows.server_T is None and not rows.groups else rows.server_T
        if self.options.max_kl is None or not self.guard.rung or server_T is None or not server_T.any():
            return at, {}
        policy, by_layer = self.ladder[self.guard.rung - 1]
        price_T = np.where(server_T, np.float32(policy.asks), rows.price_T)
        return at, {ABOVE: Trial(price_T, None if self.plan.graphs else by_layer)}

    def hear(self, sample: Sample) -> None:
        """What a shadow step has measured, unless another rung or ladder was in force then."""
        if self.options.max_kl is None or sample.at != self.at or not sample.server.rows:
            return
        above = None if sample.above is None else sample.above.kl / sample.above.rows
        change = self.guard.add("kl", sample.server.kl / sample.server.rows, above)
        if change is not None:
            self._change(change)

    def wants(self, layer: int) -> bool:
        """Whether the current step is sampled at this layer; a graph samples them all alike."""
        layers = self.layers if self.inside is None else self.inside.layers
        return (layer in layers or layer == self.shadow) and self._reaches(layer)

    def _reaches(self, layer: int) -> bool:
        return self.plan.layers[layer].name not in self.plan.bypassed

    def _ask(self, inside: Figures) -> range:
        """Tells the graph whose rows count, and what the rung above asks; the layers that will be sampled, if any."""
        rows, follow = self._rows(len(inside.server))
        if rows is None or rows.remap is None or not follow:
            return range(0)
        inside.ask(rows.remap, self.ladder[max(self.guard.rung - 1, 0)][0].asks)
        return inside.layers

    def see(self, layer: int, logits_TE: Tensor, own: Routing, final: Routing, hidden_TH: Tensor | None) -> None:
        """One layer of a sampled step: the model's own routing, and the one that the expert kernel gets."""
        start = time.perf_counter()
        if self.inside is not None:
            spec, valid_T = self.plan.layers[layer].spec, self.plan.rows.valid[: len(logits_TE)]
            self.inside.see(layer, logits_TE, spec, own, final, valid_T, self.plan.by_layer[layer])
            return
        rows, follow = self._rows(len(logits_TE))
        if not follow:
            return
        above = final
        if self.guard.rung:
            above = self.ladder[self.guard.rung - 1][1][layer].decide(
                logits_TE, self.plan.layers[layer].spec, self.plan.with_costs(layer, rows), own
            )
        pair = (final,) if above is final else (final, above)
        if layer in self.layers:
            self._note("mass_lost", [mass_lost(own, each, rows) for each in pair])
        if layer == self.shadow and hidden_TH is not None and (runner := self.plan.runners[layer]()) is not None:
            exact_TH = block_output(runner, hidden_TH, own)
            errors = [output_error(exact_TH, block_output(runner, hidden_TH, each), rows) for each in pair]
            self._note("output_error", [same_on_all_ranks(error) for error in errors])
        self.seconds += time.perf_counter() - start

    def _rows(self, num_rows: int) -> tuple[Rows | None, bool]:
        """The rows that follow the server's policy, and whether there are any: requests that bring a policy of their
        own have chosen what they risk. A rung that is `vanilla` cannot be told from them while they run."""
        plan = self.plan
        masks = plan.rows.masks(num_rows)
        masks = masks and replace(masks, price=None)  # they ask what the rung that is looked at does
        if not plan.rows.groups:
            return masks, plan.rows.num_decode_rows > 0
        if plan.rows.server is None or not plan.requests.step or plan.requests.step[0][0] is not plan.policy:
            return masks, False
        return replace(masks or Rows(), remap=plan.rows.server[:num_rows]), True

    def _note(self, figure: str, now_and_above: list[Tensor]) -> None:
        self.taken.append((figure, torch.stack([now_and_above[0], now_and_above[-1]])))

    def _send(self) -> None:
        """What the last step's layers gave sets out, averaged."""
        for figure in self.options.bounds:
            if mine := [numbers for name, numbers in self.taken if name == figure]:
                self.travelling.append((self.step + self.lag, figure, Late(torch.stack(mine).mean(0))))
        self.taken.clear()

    def _change(self, change: Change) -> None:
        was = self.plan.policy.spec
        self.plan.put(*self.ladder[change.rung])
        self.plan.policy_changes["guard"] += 1
        self._forget()
        logger.warning("lynx_moe: guard: %s, so %s gives way to %s", change.why, was, self.plan.policy.spec)

    def _forget(self) -> None:
        """Figures under way are of another rung."""
        self.taken.clear()
        self.travelling.clear()
        self.layers, self.shadow = range(0), -1
