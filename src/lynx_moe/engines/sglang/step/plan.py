"""What one SGLang scheduler does with a policy: its remapped layers, the requests that it knows, the current step.

A plan is made while the model is built. It is the process's only one: SGLang runs one scheduler a process.
"""

import logging
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from lynx_moe.engines.sglang.launch.options import Options
from lynx_moe.engines.sglang.step import rows
from lynx_moe.engines.shared.metrics import Kind, Stats
from lynx_moe.engines.shared.options import EXACT, KEY
from lynx_moe.engines.shared.step import wishes
from lynx_moe.engines.shared.step.deciding import Deciding
from lynx_moe.engines.shared.step.rows import StepRows
from lynx_moe.engines.shared.step.verified import VerifiedRows
from lynx_moe.policies import ModelShape, make_policy
from lynx_moe.policies.contract.fillers import without_repeats
from lynx_moe.routing import Routing

SPEC = "lynx_moe_spec"  # attribute of SGLang's Req: what it asks for, None: the server's policy
REMAPS = "lynx_moe_remaps"  # of the same: whether rows that verify its drafts may be remapped
logger = logging.getLogger(f"sglang.{KEY}")
_active: list["Plan"] = []


class Plan(Deciding):
    """requests that have arrived stand in `known` by their ids, while SGLang has them. numbers: id of a layer's TopK
    configuration -> its number. remaps: whether the server's policy has remapped at some time. verified: of rows that
    verify drafts."""

    def __init__(self, options: Options, shape: ModelShape, max_rows: int, device: torch.device, **kinds: bool) -> None:
        """kinds: `graphs` and `speculates`, as `Deciding` has them."""
        super().__init__(options, shape, max_rows, device, **{"graphs": False, **kinds})
        self.verified = VerifiedRows()
        self.known: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self.numbers: dict[int, int] = {}
        self.asked_in_step: set[int] = set()
        self.remaps = False
        self.refused = ""  # why the last switch was

    def seal(self) -> None:
        """All layers are known: counting starts. Raises ValueError if the policy does not fit one of them."""
        self.fit()
        self.remaps = not self.policy.is_identity

    def set_policy(self, spec: str) -> str:
        """From the next step on; the full spec. Raises ValueError for a bad one."""
        self.put(*self.check(spec))
        self.policy_changes["operator"] += 1
        self.remaps |= not self.policy.is_identity
        return self.policy.spec

    def arrive(self, req: Any) -> None:
        """A request of SGLang's (Req) is about to wait for its first step, or for the next one after a retraction."""
        if not hasattr(req, SPEC):
            setattr(req, SPEC, wishes.understood(req.sampling_params, self.options))
            setattr(req, REMAPS, wishes.remaps_drafts(req.sampling_params, self.options))
        self.known[req.rid] = req

    def may_remap(self, req: Any) -> bool:
        """Whether a token that this request has generated may have been computed under remapping."""
        spec = getattr(req, SPEC, None)
        if spec is None:
            return self.remaps
        return spec != EXACT and not make_policy(spec).is_identity

    def begin(self, batch: Any) -> None:
        """A forward pass of the served model comes."""
        self.has_begun = True
        names = list(batch.rids or ())
        found = [req for name in names if (req := self.known.get(name)) is not None]
        prompts_R = [len(req.origin_input_ids) for req in found]
        step = rows.of(batch, prompts_R) if len(found) == len(names) else None
        if step is None or step.scheduled_R.sum() > len(self.rows.valid):
            self.idle()
            return
        self.requests.specs = {req.rid: spec for req in found if (spec := getattr(req, SPEC, None)) is not None}
        usual = self.options.remaps_drafts
        self.requests.verify = {req.rid: not usual for req in found if getattr(req, REMAPS, usual) != usual}
        choice_R = self.requests.choices(names)
        self.rows.fill(step.past_prompt_R, step.scheduled_R, choice_R, self.requests.asked, step.drafts_R)
        self.begin_step()

    def idle(self) -> None:
        """What comes is no step of requests."""
        self.rows.idle()
        self.requests.step = []
        self.begin_step()

    def begin_step(self) -> None:
        """The masks of `rows` are those of the step that comes next."""
        self.note_unasked()
        if self.rows.kind is Kind.SINGLE:
            self.rows.keep_own()
        self.acts = self.could_act()
        self.count_step()

    def could_act(self) -> bool:
        """Never for a row alone: what its slots hold are K experts whatever is decided (`fit_for_kernels`), so it would
        lose some and load as many."""
        return self.rows.kind is not Kind.SINGLE and super().could_act()

    def count(self, rows: StepRows, *, acts: bool, known: bool) -> None:
        super().count(rows, acts=acts, known=known)
        self.verified.count(rows)

    def reset_sums(self) -> None:
        super().reset_sums()
        self.verified.reset()

    def stats(self) -> Stats:
        return replace(super().stats(), verified=self.verified.told() if self.rows.speculates else None)

    def note_unasked(self) -> None:
        """A layer whose router was not asked in a step that others were asked in routes by itself."""
        if self.asked_in_step and not self.graphs:
            for number in set(range(len(self.layers))) - self.asked_in_step:
                self.bypass(self.layers[number].name, "its router was not asked (a fused kernel routes by itself)")
        self.asked_in_step.clear()

    def bypass(self, name: str, reason: str) -> None:
        """This layer keeps SGLang's own routing."""
        if name not in self.bypassed:
            self.bypassed[name] = reason
            logger.warning("%s: layer %s keeps SGLang's own routing: %s", KEY, name, reason)

    def reroute(self, layer: int, logits_TE: Tensor, own: Routing) -> Routing | None:
        """The final routing of one layer; None: its own."""
        self.asked_in_step.add(layer)
        if self.is_passed_by or (self.is_idle and not self.options.stats and self.recorder is None):
            return None
        final = self.settled(layer, logits_TE, own)
        return None if final is own else final

    def fit_for_kernels(self, final: Routing, own: Routing) -> Routing:
        """SGLang's torch-native experts end on an id that a row has twice; a step that loads fewer than K has some."""
        if final is own or not any(policy.drops_slots for policy in self.deciding):
            return final
        if self.device.type == "cpu" and final.counts is not None and final.counts[1] >= own.ids.shape[-1]:
            return final  # all slots were filled with different ones (`fillers.fill_slots`)
        return Routing(without_repeats(final.ids, final.weights, own.ids), final.weights)

    def describe(self) -> dict[str, Any]:
        """What is told of the policy and of what it did, in plain values."""
        return {
            "policy": self.named,
            "presets": {name: spec or self.named for name, spec in self.options.named.items()},
            "switchable": not self.graphs,
            "recorded": None if self.recorded is None else self.recorded.spec,
            "refused": self.refused,
            "stats": self.stats().as_dict(),
        }


def activate(plan: Plan) -> None:
    _active[:] = [plan]


def active() -> Plan | None:
    """The plan of this process; None where its model has none."""
    return _active[0] if _active else None
