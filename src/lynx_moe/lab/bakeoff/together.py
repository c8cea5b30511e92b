"""Many policies in one forward: each decides over its own rows of it, as if it had the batch for itself.

P policies, B rows each, T = P * B rows in the order of the policies, E experts, K = top_k. What costs most in a small
model's step, calling each expert once, is paid once for all policies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from lynx_moe.policies import ModelShape, Policy, make_policy
from lynx_moe.routing import RouterSpec, Routing, Rows, select


class Loads:
    """Distinct experts, added over layers and steps, int64 [2, P]: by the model's own routing, and by the policies'."""

    sums: Tensor
    decisions: int

    def __init__(self) -> None:
        self.reset()

    def add(self, own_PS: Tensor, final_PS: Tensor, num_experts: int) -> None:
        """One decision of every policy; S = B * K slots each."""
        ids_2PS = torch.stack((own_PS, final_PS))
        flags = ids_2PS.new_zeros(*ids_2PS.shape[:2], num_experts).scatter_(-1, ids_2PS, 1)
        self.sums = self.sums.to(ids_2PS.device) + flags.sum(-1)
        self.decisions += 1

    def reset(self) -> None:
        """Starts at zero."""
        self.sums, self.decisions = torch.zeros(2, 1, dtype=torch.int64), 0

    def means(self) -> list[tuple[float, float]]:
        """(before, after) per layer and step, for each policy."""
        before, after = (self.sums / max(self.decisions, 1)).tolist()
        return list(zip(before, after, strict=True))


@dataclass(frozen=True, kw_only=True)
class Together(Policy):
    """members decide in the order of their rows. The counts of the run that acts are over all of them: use `loads`."""

    name: ClassVar[str] = "together"
    summary: ClassVar[str] = "several policies, each over its own share of the rows"
    source: ClassVar[str] = "-"
    token_level: ClassVar[bool] = True
    acts_alone: ClassVar[bool] = True
    drops_slots: ClassVar[bool] = True
    members: tuple[Policy, ...] = ()
    loads: Loads = field(default_factory=Loads, compare=False)

    @property
    def spec(self) -> str:
        return " ".join(member.spec for member in self.members)

    @property
    def calibration_file(self) -> str | None:
        """The members' one file. Raises ValueError if they have several."""
        files = {member.calibration_file for member in self.members} - {None}
        if len(files) > 1:
            raise ValueError(f"policies in one forward take one calibration file, not {len(files)}")
        return next(iter(files), None)

    def for_model(self, model: ModelShape) -> Self:
        return replace(self, members=tuple(member.for_model(model) for member in self.members))

    @property
    def layers_differ(self) -> bool:
        return any(member.layers_differ for member in self.members)

    def at_layer(self, layer: int) -> Self:
        return replace(self, members=tuple(member.at_layer(layer) for member in self.members))

    def for_layer(self, layer: int, artifact: Mapping[int, Mapping[str, Tensor]]) -> Self:
        """A member that names no file stays without calibration."""
        members = (m if m.calibration_file is None else m.for_layer(layer, artifact) for m in self.members)
        return replace(self, members=tuple(members))

    def check(self, spec: RouterSpec) -> None:
        for member in self.members:
            member.check(spec)

    def route(
        self, logits_TE: Tensor, spec: RouterSpec, rows: Rows | None = None, own: Routing | None = None
    ) -> Routing:
        """Raises ValueError if the rows do not share out evenly."""
        num = len(self.members)
        if len(logits_TE) % num:
            raise ValueError(f"{len(logits_TE)} rows cannot be shared out among {num} policies")
        own, size = own or select(logits_TE, spec), len(logits_TE) // num
        parts = []
        for number, member in enumerate(self.members):
            part = slice(number * size, (number + 1) * size)
            mine = Routing(own.ids[part].long(), own.weights[part].float())
            parts.append(mine if member.is_identity else member.decide(logits_TE[part], spec, _cut(rows, part), mine))
        final = Routing(torch.cat([one.ids for one in parts]), torch.cat([one.weights for one in parts]))
        self.loads.add(own.ids.long().view(num, -1), final.ids.view(num, -1), spec.num_experts)
        return final


def together(specs: Sequence[str]) -> Together:
    """`vanilla`, and beside it the policies of these specs. Raises ValueError for a bad one."""
    return Together(members=tuple(make_policy(spec) for spec in ("vanilla", *specs)))


def _cut(rows: Rows | None, part: slice) -> Rows | None:
    if rows is None:
        return None
    return Rows(**{name: None if of_T is None else of_T[part] for name, of_T in vars(rows).items()})
