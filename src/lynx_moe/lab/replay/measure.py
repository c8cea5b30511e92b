"""Policies on a recording, without the model: which experts they load, and what they keep of the router's intent.

D decisions of T rows each, S steps, L layers, E experts, K = top_k, R replicas.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from lynx_moe.engines.shared.layers import Layer, fitted
from lynx_moe.lab.replay import cache, copies, votes
from lynx_moe.lab.replay.decisions import Decisions, chosen_steps, groups
from lynx_moe.lab.replay.recording import Recording
from lynx_moe.lab.replay.resident import decided as of_cache
from lynx_moe.lab.shared import intervals
from lynx_moe.policies import POLICIES, ModelShape, Placement, Policy, make_policy
from lynx_moe.routing import Routing

OF_ROWS = ("mass", "overlap", "changed", "x")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a recording is looked at. steps: only so many, evenly spaced; None: all. The experts live on `ranks` ranks,
    one after another; with `redundant` a load balancer (EPLB) has put that many copies of popular ones beside them, by
    the first half of the steps, and the second half is measured. The rows of a step are dealt out to `replicas`, which
    decide each for its own; with `votes` each knows which experts the others kept in the step before. slots: experts
    that the cache of a layer holds, on each rank. aware: policies know which these are.

    Raises ValueError for numbers that leave nothing to replay."""

    steps: int | None = None
    ranks: int = 1
    redundant: int | None = None
    replicas: int = 1
    votes: bool = False
    slots: int | None = None
    aware: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"{self.steps} steps leave nothing to replay; use 1 or more")
        if self.redundant is not None and (self.redundant < 0 or self.votes or self.slots is not None):
            raise ValueError(f"{self.redundant} redundant experts: use 0 or more, without --votes and --slots")
        if self.replicas < 1:
            raise ValueError(f"{self.replicas} replicas cannot share out the rows; use 1 or more")
        if self.votes and self.replicas < 2:
            raise ValueError("votes are of other replicas: give --replicas 2 or more")
        if self.slots is not None and self.slots < 1:
            raise ValueError(f"a cache of {self.slots} slots holds no expert; use 1 or more")
        if self.slots is not None and self.steps is not None:
            raise ValueError("a cache needs every step in its order: give --slots or a number of steps, not both")
        if self.aware and (self.slots is None or self.ranks > 1 or self.replicas > 1):
            raise ValueError("--aware is of one cache: say its --slots, and leave --ranks and --replicas at 1")

    def tells(self, policy: Policy) -> bool:
        """Whether the policy is told what the cache holds: one that needs it is, where there is one cache."""
        one_cache = self.slots is not None and self.ranks == self.replicas == 1
        return self.aware or (policy.needs_residency and one_cache)


def replay(
    recording: Recording,
    policies: Sequence[str | Policy],
    setting: Setting = Setting(),
) -> list[dict[str, Any]]:
    """A line per policy, means over layers and steps, or over the rows that it may remap:

    before, after  distinct experts of a layer and step, by the model's own routing and by the policy's.
    fullest_before, fullest_after    the same of the rank that loads most; with copies by vLLM's choice.
    fewest_before, fewest_after      the same by METRO's choice of copies (`copies`); with copies only.
    replica_before, replica_after    the same of one replica's rows.
    loads_before, loads_after        experts that the rank which misses most must load into its cache; with slots only.
    mass           router scores of the experts that a row got, as a share of those that it asked for.
    overlap        share of a row's own experts that it got.
    changed        share of rows that got other experts than they asked for.
    x              sum of the squared shares that a row's lost experts had in its weight.

    Of a trace of routes also `kept`, after / before, with its 95 % interval and that of x, over the drawn batches.

    Raises ValueError for a bad policy, a knob that does not fit the recorded router, and, on a trace of routes, for a
    policy that needs scores of experts that rows did not choose; and for one that decides by what a cache holds where
    there is none, or more than one.
    """
    shape = ModelShape(**recording.facts["shape"])
    named = [named_policy(policy, setting).for_model(shape) for policy in policies]
    if recording.facts.get("own_only"):
        _check_own_only(named)
    run = recording.facts.get("run")
    if setting.votes and run is None:
        raise ValueError("votes of the step before need batches that go on: give a trace of routes (.npz)")
    placements, of_layers = [Placement.linear(recording.layers[0].spec.num_experts, setting.ranks)], None
    if setting.redundant is not None:
        window, recording = copies.halves(recording)
        of_layers = copies.balanced(window, setting.redundant, setting.ranks)
        placements = [one.placement() for one in of_layers]
    layers = [
        Layer(name=layer.name, spec=layer.spec, placement=placement)
        for layer, placement in zip(recording.layers, cycle(placements), strict=False)
    ]
    steps_S, numbers = chosen_steps(recording, setting.steps), range(len(layers))
    stacked = list(groups(recording, steps_S, numbers))
    lines = []
    model, device = shape.name or shape.model_type, recording.remap.device
    fits_by_policy = [fitted(policy, layers, model, device, residency=setting.tells(policy)) for policy in named]
    for policy, fits in zip(named, fits_by_policy, strict=True):
        if setting.tells(policy):
            decided = of_cache(recording, fits, setting.slots or 0)
            jobs = ((group, _taken(decided, group)) for group in stacked)
        elif setting.votes and not policy.layers_differ:
            jobs = ((group, votes.decide(group, fits[0], setting.replicas, run or 1)) for group in stacked)
        elif not policy.layers_differ and of_layers is None:
            jobs = ((group, group.decide(fits[0], setting.replicas)) for group in stacked)
        else:  # every layer has a policy of its own, or experts of its own on ranks
            by_layer = ((n, group) for n in numbers for group in groups(recording, steps_S, [n]))
            jobs = ((group, group.decide(fits[n], setting.replicas)) for n, group in by_layer)
        counted = _count(jobs, (len(layers), len(steps_S), layers[0].spec.num_experts), setting.replicas, of_layers)
        lines.append({"policy": policy.spec, **_line(counted, placements[0], setting, run)})
    return lines


def named_policy(policy: str | Policy, setting: Setting) -> Policy:
    """The policy. Raises ValueError for a bad spec, and for one that needs a cache that this setting has not."""
    made = make_policy(policy) if isinstance(policy, str) else policy
    if made.needs_residency and setting.slots is None:
        raise ValueError(f"{made.spec} looks at which experts a cache holds: say by --slots how many it has room for")
    if made.needs_residency and not setting.tells(made):
        raise ValueError(f"{made.spec} is replayed with one cache: leave --ranks and --replicas at 1")
    return made


def _taken(decided: Sequence[Routing], group: Decisions) -> Routing:
    """What was decided for the rows of a group."""
    parts = zip(group.layer_D.tolist(), group.places, strict=True)
    ids, weights = zip(*((decided[n].ids[places], decided[n].weights[places]) for n, places in parts), strict=True)
    return Routing(torch.stack(ids), torch.stack(weights))


def routings(recording: Recording, policy: Policy, layer: int) -> Tensor:
    """The ids [N, K] that `policy` gives all rows of a layer."""
    ids_NK = recording.layers[layer].own.ids.clone()
    for group in groups(recording, chosen_steps(recording, None), [layer]):
        ids_NK[group.places] = group.decide(policy).ids
    return ids_NK


def _check_own_only(policies: Sequence[Policy]) -> None:
    for policy in policies:
        if policy.needs_scores:
            allowed = ", ".join(name for name, known in POLICIES.items() if known.own_only)
            raise ValueError(
                f"{policy.spec} looks at scores of experts that a row did not choose, which a trace of routes lacks; "
                f"allowed: {allowed}"
            )


@dataclass(frozen=True, eq=False)
class _Counted:
    """used_CRLSE: experts that were loaded, C being the model's own routing and the policy's; of_rows_SM: sums over the
    rows that may change of what OF_ROWS names; rows_S: how many these are, in all layers; fullest_XCLS: loads of the
    fullest rank by each of `copies.CHOICES`."""

    used_CRLSE: Tensor
    of_rows_SM: Tensor
    rows_S: Tensor
    fullest_XCLS: Tensor


def _count(
    jobs: Iterable[tuple[Decisions, Routing]],
    shape_LSE: tuple[int, int, int],
    replicas: int,
    of_layers: Sequence[copies.Copies] | None,
) -> _Counted:
    """Of decisions and what was decided; with copies each job is of one layer."""
    num_steps = shape_LSE[1]
    used_CRLSE = torch.zeros(2, replicas, *shape_LSE, dtype=torch.bool)
    of_rows_SM = torch.zeros(num_steps, len(OF_ROWS), dtype=torch.float64)
    rows_S = torch.zeros(num_steps, dtype=torch.int64)
    fullest_XCLS = torch.zeros(len(copies.CHOICES), *used_CRLSE.shape[:1], *shape_LSE[:2], dtype=torch.int64)
    for group, final in jobs:
        score_DTE = group.scores()
        for column, choice in enumerate((group.ids, final.ids)):
            used_DRE = group.used(choice, replicas)
            used_CRLSE[column, :, group.layer_D, group.step_D] = used_DRE.transpose(0, 1)
            if of_layers is not None:
                mine = of_layers[int(group.layer_D[0])]
                fullest_XD = mine.fullest(choice, used_DRE.any(1), replicas)
                fullest_XCLS[:, column, group.layer_D, group.step_D] = fullest_XD
        live_DTK = (final.weights > 0).to(score_DTE.dtype)  # a slot left over holds some loaded expert, at weight 0
        chosen_DTE = torch.zeros_like(score_DTE).scatter_reduce(2, final.ids, live_DTK, "amax")
        asked_DT = score_DTE.gather(2, group.ids).sum(-1).clamp(min=1e-20)
        same_DTK = chosen_DTE.gather(2, group.ids).where(group.weights > 0, 1.0)
        share_DTK = group.weights / group.weights.sum(-1, keepdim=True).clamp(min=1e-20)
        same_DT = same_DTK.double().mean(-1)
        lost_DT = (share_DTK.square() * (1 - same_DTK)).sum(-1)
        found = ((score_DTE * chosen_DTE).sum(-1) / asked_DT, same_DT, same_DT < 1, lost_DT)
        found_DM = torch.stack([value.double().where(group.remap, 0.0).sum(-1) for value in found], -1)
        of_rows_SM.index_add_(0, group.step_D, found_DM)
        rows_S.index_add_(0, group.step_D, group.remap.sum(-1))
    return _Counted(used_CRLSE, of_rows_SM, rows_S, fullest_XCLS)


def _line(counted: _Counted, placement: Placement, setting: Setting, run: int | None) -> dict[str, Any]:
    union_CLSE = counted.used_CRLSE.any(1)
    loaded_CS = union_CLSE.sum(-1).double().mean(1)
    line = dict(zip(("before", "after"), loaded_CS.mean(-1).tolist(), strict=True))
    rank_CLSE = [union_CLSE & here_E for here_E in placement.here_RE]
    if setting.redundant is None:
        line |= _pair("fullest", torch.stack([mine.sum(-1) for mine in rank_CLSE]).amax(0))
    else:
        for name, value_CLS in zip(copies.CHOICES, counted.fullest_XCLS, strict=True):
            line |= _pair(name, value_CLS)
    line |= _pair("replica", counted.used_CRLSE.sum(-1).double().mean(1))
    if setting.slots is not None:
        missed = [torch.stack([cache.loads(used, setting.slots) for used in mine]) for mine in rank_CLSE]
        line |= _pair("loads", torch.stack(missed).amax(0))
    means = counted.of_rows_SM.sum(0) / counted.rows_S.sum().clamp(min=1)
    line |= dict(zip(OF_ROWS, means.tolist(), strict=True))
    return line if run is None else line | _with_intervals(loaded_CS, counted, run)


def _pair(name: str, value_CLS: Tensor) -> dict[str, float]:
    before, after = value_CLS.double().mean((1, 2)).tolist()
    return {f"{name}_before": before, f"{name}_after": after}


def _with_intervals(loaded_CS: Tensor, counted: _Counted, run: int) -> dict[str, Any]:
    """Kept share, and intervals over batches of `run` steps each."""
    before_R, after_R = loaded_CS.view(2, -1, run).sum(-1).tolist()
    rows_R = counted.rows_S.view(-1, run).sum(-1).double()
    x_R = counted.of_rows_SM[:, OF_ROWS.index("x")].view(-1, run).sum(-1) / rows_R
    ratios = [after / before for before, after in zip(before_R, after_R, strict=True)]
    return {
        "kept": sum(after_R) / sum(before_R),
        "kept_interval": intervals.weighted_mean(ratios, before_R) if len(ratios) > 1 else None,
        "x_interval": intervals.weighted_mean(x_R.tolist(), rows_R.tolist()) if len(ratios) > 1 else None,
        "batches": len(ratios),
    }
