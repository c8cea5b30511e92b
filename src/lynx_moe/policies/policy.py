"""The contract of a policy, and what every policy has in common.

A policy says which experts stay (`keep`), or makes whole routings (`propose`). `route` takes care of the rest, so that
these hold for every policy: rows that may not be remapped are untouched bit for bit; one row with nothing donated is
left alone; a step never loads more distinct experts than the model's own routing; padding rows load nothing.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lynx_moe.routing import RouterSpec, Routing, Rows, distinct, loaded, preference, reroute, select


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What identifies a model to a policy that has published settings for it."""

    model_type: str
    num_layers: int
    num_experts: int
    top_k: int
    name: str = ""


@dataclass(frozen=True, eq=False)
class Step:
    """One layer's view of one engine step, made by `Policy.route` (T rows, E experts, K = top_k).

    logits_TE   float32; rows that do not vote are zeroed, so nothing of theirs can leak in (NaN least of all)
    own         the model's own routing
    voters_T    bool: the rows that may be remapped
    free_E      bool: experts that rows which keep their own routing load anyway
    choice_TE   float32: what the model ranks by (`routing.preference`)
    allowed_TE  bool: the experts that the model's groups let a row choose from; None: all
    """

    logits_TE: Tensor
    spec: RouterSpec
    own: Routing
    voters_T: Tensor
    free_E: Tensor
    choice_TE: Tensor
    allowed_TE: Tensor | None

    def union(self, ids_TK: Tensor) -> Tensor:
        """bool [E]: the experts named by any voter's row of ids_TK."""
        return loaded(ids_TK, self.spec.num_experts, self.voters_T)

    def votes(self) -> Tensor:
        """int64 [E]: how many voters have the expert among their own top-k."""
        ids_TK = torch.where(self.voters_T[:, None], self.own.ids, self.spec.num_experts)
        count = torch.zeros(self.spec.num_experts + 1, dtype=torch.int64, device=ids_TK.device)
        return count.scatter_add(0, ids_TK.flatten(), torch.ones_like(ids_TK.flatten()))[:-1]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Base of all policies: an immutable set of knobs, named by one spec string such as `lynx:alpha=3,beta=2`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    is_identity: ClassVar[bool] = False

    @property
    def spec(self) -> str:
        """The spec string that makes this policy again: the name, and every knob that is not at its default."""
        knobs = [f"{f.name}={_text(getattr(self, f.name))}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{self.name}:{','.join(knobs)}" if knobs else self.name

    def for_model(self, model: ModelShape) -> Self:
        """The policy with knobs that were left open set to what is published for this model, if anything is."""
        return self

    def check(self, spec: RouterSpec) -> None:
        """Raises ValueError if a knob does not fit the router."""

    def keep(self, step: Step) -> Tensor:
        """bool [E]: the experts that stay. Donated ones (`step.free_E`) are added by `propose`."""
        raise NotImplementedError(f"{self.name} must define keep() or propose()")

    def propose(self, step: Step) -> Routing:
        """A routing for every row; rows that do not vote are ignored."""
        ranked = (step.choice_TE, step.allowed_TE)
        return reroute(step.logits_TE, self.keep(step) | step.free_E, step.spec, step.own, ranked)

    def route(
        self, logits_TE: Tensor, spec: RouterSpec, rows: Rows | None = None, own: Routing | None = None
    ) -> Routing:
        """Decides one layer of one step.

        logits_TE  [T, E] router logits, any float type; compared in float32.
        rows       which rows are padding and which may be remapped; None: a pure decode batch.
        own        the routing that the engine computed from these logits, if it has one: rows that keep their routing
                   get exactly that. None: `select(logits_TE, spec)`.

        A row whose largest logit is not finite (NaN anywhere, +inf, or -inf everywhere) is treated as not remappable.
        Padding rows come back with a valid row's ids and weight 0. Raises ValueError if a knob does not fit `spec`.
        """
        self.check(spec)
        logits_TE = logits_TE.float()
        own = own or select(logits_TE, spec)
        own = Routing(own.ids.long(), own.weights)
        valid_T = rows.valid if rows else None
        voters_T = logits_TE.amax(-1).isfinite()
        if rows and rows.remap is not None:
            voters_T = voters_T & rows.remap
        if valid_T is not None:
            voters_T = voters_T & valid_T
        final = own
        if not self.is_identity:
            logits_TE = logits_TE.where(voters_T[:, None], 0.0)
            silent_T = ~voters_T if valid_T is None else valid_T & ~voters_T
            free_E = loaded(own.ids, spec.num_experts, silent_T)
            step = Step(logits_TE, spec, own, voters_T, free_E, *preference(logits_TE, spec))
            final = _settle(self.propose(step), step, valid_T)
        return final if valid_T is None else _fill_padding(final, valid_T)

    def decide(
        self, logits_TE: Tensor, spec: RouterSpec, rows: Rows | None = None, own: Routing | None = None
    ) -> Routing:
        """`route`, by a kernel where there is one for this device and router: the same ids, weights within rounding.

        For engines that call it outside a traced graph; the graph of `route` is plain torch.
        """
        return self.route(logits_TE, spec, rows, own)


def _settle(proposed: Routing, step: Step, valid_T: Tensor | None) -> Routing:
    """The proposal on the voters' rows, or the model's own routing if the step gains nothing or loads more."""
    own, num_experts = step.own, step.spec.num_experts
    voters_T1 = step.voters_T[:, None]
    ids_TK = torch.where(voters_T1, proposed.ids, own.ids)
    gains = (step.voters_T.sum() > 1) | step.free_E.any()
    fewer = distinct(ids_TK, num_experts, valid_T) <= distinct(own.ids, num_experts, valid_T)
    act = gains & fewer
    return Routing(
        torch.where(act, ids_TK, own.ids), torch.where(voters_T1 & act, proposed.weights, own.weights).float()
    )


def _fill_padding(routing: Routing, valid_T: Tensor) -> Routing:
    """Padding rows repeat the first valid row's ids with weight 0, so that they load nothing of their own."""
    first = valid_T.to(torch.int8).argmax(0, keepdim=True)
    return Routing(
        torch.where(valid_T[:, None], routing.ids, routing.ids.index_select(0, first)),
        torch.where(valid_T[:, None], routing.weights, 0.0),
    )


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")


def check_num_keep(name: str, num_keep: int, spec: RouterSpec) -> None:
    """Raises ValueError unless top_k <= num_keep <= num_experts."""
    if not spec.top_k <= num_keep <= spec.num_experts:
        raise ValueError(
            f"{name}: num_keep={num_keep} must lie between the model's top_k={spec.top_k} "
            f"and its {spec.num_experts} experts"
        )
