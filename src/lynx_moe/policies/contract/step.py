"""What a policy sees: one layer's view of one engine step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lynx_moe.routing import RouterSpec, Routing, Rows, loaded, order_key, preference


@dataclass(frozen=True, eq=False)
class Step:
    """Made by `make_step` (T rows, E experts, K = top_k).

    logits_TE   float32; rows that do not vote are zeroed, so nothing of theirs can leak in (NaN least of all)
    own         the model's own routing
    voters_T    bool: the rows that may be remapped
    price_T     float32: what rows ask (`Rows.price`); None: what the policy does
    request_T   int64: rows of one request have the same number; None: each row is of its own
    depth_T     int64: a row's place in its request's draft; None: 0
    chance_T    float32: that a row's token is committed; None: 1
    load_cost_E float32: what an expert's load costs (`Rows.load_cost_E`); None: 1
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
    price_T: Tensor | None = None
    request_T: Tensor | None = None
    depth_T: Tensor | None = None
    chance_T: Tensor | None = None
    load_cost_E: Tensor | None = None

    def best(self, num: int) -> Tensor:
        """int64 [T, num]: every row's first experts, in the model's order."""
        return order_key(self.choice_TE, self.allowed_TE).topk(num, -1).indices

    def ranks(self) -> Tensor:
        """int64 [T, K]: the rank of every slot of the model's own routing among its row's slots, 0 the first.

        Engines may hand over a top-k that is not sorted.
        """
        key_TK = order_key(self.choice_TE, self.allowed_TE).gather(-1, self.own.ids)
        return (key_TK[:, None, :] > key_TK[:, :, None]).sum(-1)

    def alone(self) -> Tensor:
        """0-d bool: one row votes, and nothing is donated."""
        return (self.voters_T.sum() == 1) & ~self.free_E.any()

    def first(self, value_TK: Tensor) -> Tensor:
        """[T, 1]: what a row's first slot, the one of rank 0, has of a value per slot."""
        return value_TK.gather(-1, self.ranks().argmin(-1, keepdim=True))

    def own_mass(self) -> Tensor:
        """float32 [T, 1]: what the weights of the model's own routing sum to."""
        return self.own.weights.sum(-1, keepdim=True)

    def union(self, ids_TK: Tensor) -> Tensor:
        """bool [E]: the experts named by any voter's row of ids_TK."""
        return loaded(ids_TK, self.spec.num_experts, self.voters_T)

    def votes(self) -> Tensor:
        """int64 [E]: how many voters have the expert among their own top-k."""
        ids_TK = torch.where(self.voters_T[:, None], self.own.ids, self.spec.num_experts)
        count = torch.zeros(self.spec.num_experts + 1, dtype=torch.int64, device=ids_TK.device)
        return count.scatter_add(0, ids_TK.flatten(), torch.ones_like(ids_TK.flatten()))[:-1]

    def by_request(self, value_TN: Tensor) -> Tensor:
        """float64 [T, N]: at every row, the sum over the voters of its request. Compared in float32, it does not tell
        the rows' order."""
        value_TN = value_TN.double().where(self.voters_T[:, None], 0.0)
        if self.request_T is None:
            return value_TN
        return torch.zeros_like(value_TN).index_add(0, self.request_T, value_TN)[self.request_T]

    def middle_price(self, most: float) -> tuple[Tensor, Tensor] | None:
        """(float32 [1]: the voters' middle price m, of an even number the upper one; float64 [T, 1]: m over each row's
        own); prices above `most` count as that. None where rows bring no prices."""
        if self.price_T is None:
            return None
        price_T = self.price_T.float().clamp(max=most)
        order_T = price_T.where(self.voters_T, torch.inf).sort().values
        middle = (self.voters_T.sum(dim=0, keepdim=True) // 2).clamp(max=len(order_T) - 1)
        price = order_T.gather(0, middle)  # gather: indexing with a 0-d tensor would sync with the host
        return price, (price.double() / price_T.where(self.voters_T, 1.0).double())[:, None]

    def total(self, value_TE: Tensor) -> Tensor:
        """float64 [E]: the voters' sum. Compared in float32, as `order_key` does, it does not tell the rows' order."""
        return value_TE.double().where(self.voters_T[:, None], 0.0).sum(0)


def make_step(logits_TE: Tensor, spec: RouterSpec, rows: Rows | None, own: Routing) -> Step:
    """The view of these float32 logits; own.ids are int64. A row whose largest logit is not finite does not vote, nor
    does one whose price is 0."""
    valid_T = rows.valid if rows else None
    voters_T = logits_TE.amax(-1).isfinite()
    if rows and rows.remap is not None:
        voters_T = voters_T & rows.remap
    if rows and rows.price is not None:
        voters_T = voters_T & (rows.price > 0)
    if valid_T is not None:
        voters_T = voters_T & valid_T
    logits_TE = logits_TE.where(voters_T[:, None], 0.0)
    free_E = loaded(own.ids, spec.num_experts, ~voters_T if valid_T is None else valid_T & ~voters_T)
    choice_TE, allowed_TE = preference(logits_TE, spec)
    rows = rows or Rows()
    told = (rows.price, rows.request, rows.depth, rows.chance, rows.load_cost_E)
    return Step(logits_TE, spec, own, voters_T, free_E, choice_TE, allowed_TE, *told)
