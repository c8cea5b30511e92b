"""Several policies in one step: each decides for rows of its own, in turn, and the rows that are settled donate.

Shapes: T rows, E experts, K = top_k.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lynx_moe.policies.contract.policy import Policy, fill_padding
from lynx_moe.routing import RouterSpec, Routing, Rows


def decide_groups(
    groups: Sequence[tuple[Policy, Tensor]],
    logits_TE: Tensor,
    spec: RouterSpec,
    own: Routing,
    rows: Rows | None = None,
) -> Routing:
    """One layer of one step; `groups` are (policy, bool [T]) in the order in which they settle, no row in two of them.

    rows: what is known of all rows, who may be remapped apart. Rows whose policies differ in price only are one group.
    A group's rows vote among themselves. Rows outside all groups keep `own`, and they and the groups before a group
    donate what they load; the groups after it are not there yet. The contract of a single policy holds for the whole:
    if the step would load more than the model's own routing does, it keeps the latter.
    """
    rows = rows or Rows()
    valid_T = rows.valid
    real_T = torch.ones_like(groups[0][1]) if valid_T is None else valid_T
    waiting_T = torch.stack([rows_T for _, rows_T in groups]).any(0)
    final = own
    for policy, rows_T in groups:
        waiting_T = waiting_T & ~rows_T
        mine = replace(rows, valid=real_T & ~waiting_T, remap=rows_T)
        decided = policy.decide(logits_TE, spec, mine, final)
        mine_T1 = (rows_T & real_T)[:, None]
        final = Routing(
            torch.where(mine_T1, decided.ids, final.ids), torch.where(mine_T1, decided.weights, final.weights)
        )
    if all(policy.guarded for policy, _ in groups):
        ids = (final.ids, own.ids, spec.num_experts, real_T, rows.load_cost_E)
        act = torch.stack([policy.allows(*ids) for policy, _ in groups]).all()
        final = Routing(torch.where(act, final.ids, own.ids), torch.where(act, final.weights, own.weights))
    return final if valid_T is None else fill_padding(final, valid_T)
