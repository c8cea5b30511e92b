"""SGLang's CPU kernels for verifying drafts, in plain torch: for tests alone.

They are part of `sgl_kernel`, of which there is no build for a CPU without AMX, and its torch-native attention knows no
rows that verify. What is here does what the names say, for any tree of drafts; so SGLang's own scheduler, its drafts by
n-grams and its radix cache run as they are.

Shapes: B requests, N rows of each.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def assign_req_to_token_pool_cpu(
    rows_B: Tensor, table: Tensor, start_B: Tensor, end_B: Tensor, new: Tensor, _: int
) -> None:
    """table[row, start:end] = the next of `new`."""
    at = 0
    for row, start, end in zip(rows_B.tolist(), start_B.tolist(), end_B.tolist(), strict=True):
        table[row, start:end] = new[at : at + end - start].to(table.dtype)
        at += end - start


def assign_extend_cache_locs_cpu(
    rows_B: Tensor, table: Tensor, start_B: Tensor, end_B: Tensor, out: Tensor, _: int
) -> None:
    """The next of `out` = table[row, start:end]."""
    at = 0
    for row, start, end in zip(rows_B.tolist(), start_B.tolist(), end_B.tolist(), strict=True):
        out[at : at + end - start] = table[row, start:end].to(out.dtype)
        at += end - start


def fill_accept_out_cache_loc_cpu(accepted: Tensor, places: Tensor, out: Tensor) -> None:
    """out begins with the places of what was accepted; -1 in `accepted` is nothing."""
    found = accepted.flatten()[accepted.flatten() >= 0]
    out[: len(found)] = places[found.long()].to(out.dtype)


def copy_all_layer_kv_cache_cpu(addresses: Tensor, strides: Tensor, new: Tensor, old: Tensor) -> None:
    """In every buffer, rows of `stride` bytes: those at `old` are copied to `new`."""
    for address, stride in zip(addresses.tolist(), strides.tolist(), strict=True):
        rows = [ctypes.string_at(address + place * stride, stride) for place in old.tolist()]
        for place, row in zip(new.tolist(), rows, strict=True):
            ctypes.memmove(address + place * stride, row, stride)


def reconstruct_indices_from_tree_mask(
    mask: Tensor,
    lengths_B: Tensor,
    positions: Tensor,
    index_BN: Tensor,
    child_BN: Tensor,
    sibling_BN: Tensor,
    *size: int,
) -> None:
    """From mask [B, N, N], whether j is an ancestor of i or itself: positions, first children and next siblings."""
    num_requests, num_rows = size
    index_BN.copy_(torch.arange(num_requests * num_rows).view(num_requests, num_rows))
    above_BNN = mask.view(num_requests, num_rows, num_rows).tril(-1)
    positions.copy_((above_BNN.sum(-1) + lengths_B[:, None]).flatten())
    for request in range(num_requests):
        ancestors = [[j for j in range(i) if above_BNN[request, i, j]] for i in range(num_rows)]
        parent = [max(found, default=-1) for found in ancestors]
        for i in range(num_rows):
            children = [k for k in range(i + 1, num_rows) if parent[k] == i]
            siblings = [k for k in range(i + 1, num_rows) if parent[k] == parent[i] >= 0]
            child_BN[request, i], sibling_BN[request, i] = min(children, default=-1), min(siblings, default=-1)


def verify_tree_greedy_cpu(
    *,
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    target_predict: Tensor,
) -> None:
    """Follows the tree while a child is what the model would have said; what it says last is the next token."""
    says = target_predict.flatten()
    for request in range(len(candidates)):
        here, found = 0, [int(retrive_index[request, 0])]
        while here >= 0:
            predicts[found[-1]] = says[found[-1]]
            here = int(retrive_next_token[request, here])
            while here >= 0 and candidates[request, here] != says[found[-1]]:
                here = int(retrive_next_sibling[request, here])
            if here >= 0:
                found.append(int(retrive_index[request, here]))
        accept_index[request, : len(found)] = torch.tensor(found, dtype=accept_index.dtype)
        accept_token_num[request] = len(found) - 1


KERNELS: tuple[Callable[..., None], ...] = (
    assign_req_to_token_pool_cpu,
    assign_extend_cache_locs_cpu,
    fill_accept_out_cache_loc_cpu,
    copy_all_layer_kv_cache_cpu,
    verify_tree_greedy_cpu,
)


def register() -> None:
    """The entry point: torch-native attention that knows rows which verify."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    target = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend.forward_extend"
    HookRegistry.register(target, attend, HookType.AROUND)


def attend(
    original: Any, backend: Any, q: Tensor, k: Tensor, v: Tensor, layer: Any, batch: Any, *more: Any, **given: Any
) -> Any:
    """Rows that verify see what was there before their step, and of the step their ancestors and themselves."""
    if batch.forward_mode.name != "TARGET_VERIFY":
        return original(backend, q, k, v, layer, batch, *more, **given)
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    pool = backend.token_to_kv_pool
    pool.set_kv_buffer(layer, KVWriteLoc(batch.out_cache_loc, backend.swa_out_cache_loc), k, v)
    keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
    lengths = batch.seq_lens.tolist()
    num_rows = len(q) // len(lengths)
    trees = batch.spec_info.custom_mask.view(len(lengths), num_rows, num_rows)
    q_BN = q.view(len(lengths), num_rows, layer.tp_q_head_num, layer.qk_head_dim)
    outs = []
    for number, length in enumerate(lengths):
        places = backend.req_to_token_pool.req_to_token[batch.req_pool_indices[number], : length + num_rows].long()
        mask = torch.cat((torch.ones(num_rows, length, dtype=torch.bool), trees[number].bool()), -1)
        parts = [part.transpose(0, 1)[None] for part in (q_BN[number], keys[places], values[places])]
        grouped = layer.tp_q_head_num != layer.tp_k_head_num
        out = scaled_dot_product_attention(*parts, attn_mask=mask, scale=layer.scaling, enable_gqa=grouped)
        outs.append(out[0].transpose(0, 1).flatten(1))
    return torch.cat(outs)
