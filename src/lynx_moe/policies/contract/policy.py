"""The contract of a policy, and what every policy has in common.

`route` takes care that these hold for every policy: rows that may not be remapped are untouched bit for bit; one row
with nothing donated keeps its routing, unless the policy `acts_alone`; a step never loads more distinct experts than
the model's own routing; slots left over hold what is loaded anyway; padding rows load nothing. What a policy adds is a
routing for the rows that may change: most derive it from one of the three forms in `forms.py`.
"""

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lynx_moe.policies.contract.fillers import fill_slots
from lynx_moe.policies.contract.step import Step, make_step
from lynx_moe.routing import RouterSpec, Routing, Rows, loaded, select

SHARED = {  # knobs that several policies have: they come last in a spec
    "per_rank": "under expert parallelism, empty the fullest rank: true or false",
    "norm": "how a changed row's experts are weighed: model, mass, k2=N; where slots go own=G; sere, exfold own, fold",
    "data": "calibration file",
}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What identifies a model to a policy that has published settings for it."""

    model_type: str
    num_layers: int
    num_experts: int
    top_k: int
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Base of all policies: an immutable set of knobs, named by one spec string such as `priced:price=0.01`.

    Words of the contract that a policy may declare:
    is_identity   changes nothing.
    token_level   looks at each row alone and drops some of its slots.
    acts_alone    acts on a row that decodes alone, with nothing donated, too.
    drops_slots   a row may end up with fewer than K experts: `propose` says so by EMPTY slots (`fillers.py`).
    knows_prices  reads `Rows.price`. Other policies take a price above 0 as leave to remap the row.
    own_only      which experts it loads, and which of a row's own it takes away, follows from the rows' own experts and
                  their weights alone: a trace of routes without scores is enough to tell (`lab/replay/routes.py`).
    knows_ranks   has the knob per_rank: its experts can be spread over the ranks of expert parallelism.
    needs_residency  decides by which experts are in memory already (`Rows.load_cost_E`), and so by what other requests
                  have left there. What is in memory loads nothing: these experts may be taken in addition.
    guarded       a step that would load more than the model's own routing keeps the latter. False is for experiments
                  of the lab, which deny experts to see what that costs; no policy of the table says so.
    one_of        knobs of which exactly one must be given.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    is_identity: ClassVar[bool] = False
    token_level: ClassVar[bool] = False
    acts_alone: ClassVar[bool] = False
    drops_slots: ClassVar[bool] = False
    knows_prices: ClassVar[bool] = False
    own_only: ClassVar[bool] = False
    knows_ranks: ClassVar[bool] = False
    needs_residency: ClassVar[bool] = False
    guarded: ClassVar[bool] = True
    one_of: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Checks the knobs by themselves. A subclass that adds checks calls this one too."""
        given = [f"{key}={_text(getattr(self, key))}" for key in self.one_of if getattr(self, key) is not None]
        if self.one_of and len(given) != 1:
            allowed = " or ".join(f"{key}=VALUE" for key in self.one_of)
            raise ValueError(f"{self.name}: give exactly one of {allowed}; given: {', '.join(given) or 'none'}")

    @classmethod
    def knob_fields(cls) -> list[Field[Any]]:
        """The policy's own knobs, then the shared ones. A field that takes no part in comparison is no knob."""
        return sorted((f for f in fields(cls) if f.compare), key=lambda f: f.name in SHARED)

    @property
    def spec(self) -> str:
        """The spec string that makes this policy again: the name, and every knob that is not at its default."""
        values = ((f.name, getattr(self, f.name), f.default) for f in self.knob_fields())
        knobs = [f"{name}={_text(value)}" for name, value, default in values if value != default]
        return f"{self.name}:{','.join(knobs)}" if knobs else self.name

    @property
    def asks(self) -> float:
        """The price of a row that follows this policy, as `Rows.price` has it: 0 keeps the model's routing."""
        return 0.0 if self.is_identity else 1.0

    def without_price(self) -> Self:
        """The policy but for its price: rows of policies that are then equal can be decided together, by prices."""
        return self

    def at_price(self, price: float) -> Self:
        """The policy at this price; itself if it knows none."""
        return self

    @property
    def needs_scores(self) -> bool:
        """Whether it looks at scores of experts that a row did not choose."""
        return not self.own_only

    @property
    def calibration_file(self) -> str | None:
        """The file whose tensors an engine attaches by `for_layer`; None: the policy has no need of any."""
        return None

    def for_model(self, model: ModelShape) -> Self:
        """The policy with knobs that were left open set to what is published for this model, if anything is."""
        return self

    def for_layer(self, layer: int, artifact: Mapping[int, Mapping[str, Tensor]]) -> Self:
        """The policy of one layer, with what calibration found out about that layer attached (`calibrated.py`).

        An engine calls it for each of its layers, by the layer's number in the model, and routes by the result.
        """
        return self

    @property
    def layers_differ(self) -> bool:
        """Whether it decides otherwise in one layer than in another, on the same logits."""
        return self.calibration_file is not None

    def at_layer(self, layer: int) -> Self:
        """The policy of the layer of this number in the model, for policies to which depth matters. An engine calls it
        after `for_model`."""
        return self

    def for_placement(self, placement: Any) -> Self:
        """The policy of a layer whose experts live on ranks (`ranked.Placement`; None: they move about), for policies
        that look at ranks."""
        return self

    def check(self, spec: RouterSpec) -> None:
        """Raises ValueError if a knob does not fit the router. A subclass that adds checks calls this one too."""

    def check_residency(self, *, told: bool) -> None:
        """Raises ValueError if the policy decides by what is in memory, and nothing tells it that."""
        if self.needs_residency and not told:
            raise ValueError(
                f"{self.spec} decides by which experts are in memory, and is not told here: serve it with experts on a "
                "disk (experts_resident) and experts_residency=aware, or replay it with --slots"
            )

    def milder(self, spec: RouterSpec) -> Self | None:
        """The next setting of the same policy that moves rows less, on such a router; None: next is `vanilla`.

        What a quality guard backs off to, step by step; a policy that leaves it out is given up at once.
        """
        return None

    def propose(self, step: Step) -> Routing:
        """A routing for every row; rows that do not vote are ignored. Ids of EMPTY, weight 0, are slots left over."""
        raise NotImplementedError(f"{self.name} must derive from one of the forms, or define propose()")

    def route(
        self, logits_TE: Tensor, spec: RouterSpec, rows: Rows | None = None, own: Routing | None = None
    ) -> Routing:
        """Decides one layer of one step.

        logits_TE  [T, E] router logits, any float type; compared in float32.
        rows       which rows are padding and which may be remapped; None: a pure decode batch.
        own        the routing that the engine computed from these logits, if it has one: rows that keep their routing
                   get exactly that. None: `select(logits_TE, spec)`.

        A row whose largest logit is not finite (NaN anywhere, +inf, or -inf everywhere) is treated as not remappable.
        Padding rows come back with a valid row's ids and weight 0. Raises ValueError if a knob does not fit `spec`, or
        if calibration data are needed and not attached, or what is in memory and not told.
        """
        self.check(spec)
        self.check_residency(told=rows is not None and rows.load_cost_E is not None)
        logits_TE = logits_TE.float()
        own = own or select(logits_TE, spec)
        final = own = Routing(own.ids.long(), own.weights.float())
        valid_T = rows.valid if rows else None
        if not self.is_identity:
            step = make_step(logits_TE, spec, rows, own)
            final = self._settle(self.propose(step), step, valid_T)
        return final if valid_T is None else fill_padding(final, valid_T)

    def decide(
        self, logits_TE: Tensor, spec: RouterSpec, rows: Rows | None = None, own: Routing | None = None
    ) -> Routing:
        """`route`, by a kernel where there is one for this device and router: the same ids, weights within rounding.

        For engines that call it outside a traced graph; the graph of `route` is plain torch. A kernel may return ids
        in the type of own.ids.
        """
        return self.route(logits_TE, spec, rows, own)

    def allows(
        self, new_TK: Tensor, own_TK: Tensor, num_experts: int, valid_T: Tensor | None, cost_E: Tensor | None = None
    ) -> Tensor:
        """0-d bool: whether a step may take ids in place of the model's own: it loads no more distinct experts. cost_E:
        as `Rows.load_cost_E`."""
        new_E, own_E = (loaded(ids_TK, num_experts, valid_T) for ids_TK in (new_TK, own_TK))
        if self.needs_residency and cost_E is not None:
            new_E, own_E = (flags_E & (cost_E >= 1) for flags_E in (new_E, own_E))
        return new_E.sum() <= own_E.sum()

    def without_kernel(self, spec: RouterSpec) -> str | None:
        """Why `decide` takes the definition on a GPU too; None: there is a kernel, or nothing to decide."""
        return None if self.is_identity else f"{self.name} has no kernel"

    def _settle(self, proposed: Routing, step: Step, valid_T: Tensor | None) -> Routing:
        """The proposal on the voters' rows, or the model's own routing if the step gains nothing or loads more."""
        own, num_experts = step.own, step.spec.num_experts
        voters_T1 = step.voters_T[:, None]
        ids_TK = torch.where(voters_T1, proposed.ids, own.ids)
        act = step.voters_T.any()
        if self.guarded:
            act = self.allows(ids_TK, own.ids, num_experts, valid_T, step.load_cost_E)
        if not self.acts_alone:
            act = act & ~step.alone()
        weights_TK = torch.where(voters_T1 & act, proposed.weights, own.weights)
        ids_TK = torch.where(act, ids_TK, own.ids)
        if self.drops_slots:
            ids_TK = fill_slots(ids_TK, own.ids, num_experts, valid_T)
        return Routing(ids_TK, weights_TK)


def fill_padding(routing: Routing, valid_T: Tensor) -> Routing:
    """Padding rows repeat the first valid row's ids with weight 0, so that they load nothing of their own."""
    first = valid_T.to(torch.int8).argmax(0, keepdim=True)
    return Routing(
        torch.where(valid_T[:, None], routing.ids, routing.ids.index_select(0, first)),
        torch.where(valid_T[:, None], routing.weights, 0.0),
    )


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
