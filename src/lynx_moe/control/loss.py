"""What a row loses by a changed routing. Shapes: T rows, K = top_k, H hidden size, V words."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lynx_moe.routing import Routing, Rows


def mass_lost(own: Routing, final: Routing, rows: Rows | None = None) -> Tensor:
    """0-d: the mean, over the rows that may change, of the share of a row's own weights whose experts it did not get.

    It takes the weights that the model's own router gave, so it means the same for every router: 0 where a row keeps
    its experts, 1 where it gets none of them. How the final experts are weighed does not enter. A row without weight,
    or with NaN, counts as 0: it is never changed.
    """
    weight_TK = own.weights.float().abs()
    holds_TK = final.weights != 0  # a slot of weight 0 may hold any expert
    kept_TK = ((own.ids[:, :, None] == final.ids[:, None, :]) & holds_TK[:, None, :]).any(-1)
    lost_T = weight_TK.where(~kept_TK, 0.0).sum(-1) / weight_TK.sum(-1).clamp(min=1e-20)
    chosen_T = chosen(rows, len(lost_T), lost_T.device)
    return lost_T.nan_to_num(0.0).where(chosen_T, 0.0).sum() / chosen_T.sum().clamp(min=1)


def output_error(own_TH: Tensor, final_TH: Tensor, rows: Rows | None = None) -> Tensor:
    """0-d: squared difference of two outputs over the rows that may change, as a share of the first one's square."""
    chosen_T1 = chosen(rows, len(own_TH), own_TH.device)[:, None]
    own_TH = own_TH.float().where(chosen_T1, 0.0)
    difference_TH = final_TH.float().where(chosen_T1, 0.0) - own_TH
    return (difference_TH.square().sum() / own_TH.square().sum().clamp(min=1e-20)).nan_to_num(0.0)


def chosen(rows: Rows | None, num_rows: int, device: torch.device) -> Tensor:
    """bool [T]: valid rows that may be remapped."""
    masks = [] if rows is None else [mask for mask in (rows.valid, rows.remap) if mask is not None]
    return torch.stack(masks).all(0) if masks else torch.ones(num_rows, dtype=torch.bool, device=device)


def compare(truth: Tensor, policy: Tensor, following: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of two next-token distributions, from log-probabilities [..., V], and of tokens by their ids [...]: KL(truth ||
    policy) in nats; 1 where both rank the same token first; how much more probable the policy makes the given token (a
    difference of log-probabilities); and the truth's log-probability of it. Each [...]."""
    kl = F.kl_div(policy, truth, reduction="none", log_target=True).sum(-1)
    agree = (truth.argmax(-1) == policy.argmax(-1)).float()
    exact, told = (each.gather(-1, following[..., None])[..., 0] for each in (truth, policy))
    return kl, agree, told - exact, exact
