"""The experts of a model's MoE layers, one by one, and the statistics that calibration takes of them.

Shapes: B sequences of L tokens, T of these that are no padding, E experts, K = top_k, D hidden width.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from lynx_moe.calibration.artifact import layer_number
from lynx_moe.calibration.statistics import RoutedStatistics, SimilarityStatistics
from lynx_moe.engines.transformers.model import checked, layers_of
from lynx_moe.engines.transformers.table import Found
from lynx_moe.engines.transformers.wrap import Wraps
from lynx_moe.engines.transformers.wrappers import inside, modules_of

HELD = 2**25  # float64 numbers of expert outputs that are held at once: 256 MiB
NEVER_ALONE = {"LongcatFlashExperts"}  # fails on rows of one expert (transformers 5.19)


class Collector:
    """Statistics of every MoE layer that a policy can act on, over the batches that are added.

    What the experts get (hidden states, and the model's own ids and weights) is read where they are called. Every
    expert also runs on every token, for the similarities: E / K times the work of the MoE layers.

    Raises ValueError for a model without such layers, and for one whose experts cannot be called one by one.
    """

    def __init__(self, model: Any) -> None:
        self._model = checked(model)
        found, _, _ = layers_of(self._model, None)
        self._experts = {layer_number(one.layer.name): experts_of(self._model, one) for one in found}
        sizes = {layer_number(one.layer.name): one.layer.spec.num_experts for one in found}
        self._routed = {number: RoutedStatistics(size) for number, size in sizes.items()}
        self._similar = {number: SimilarityStatistics(size) for number, size in sizes.items()}
        self.num_tokens = 0

    @torch.inference_mode()
    def add(self, ids_BL: Tensor, mask_BL: Tensor, **inputs: Any) -> None:
        """One forward over a batch; mask_BL is 0 for padding, which counts nowhere. `inputs` go to the model."""
        valid_T = mask_BL.flatten().nonzero()[:, 0]
        wraps = Wraps()
        for number, experts in self._experts.items():
            wraps.add(experts, "forward", self._around(number, valid_T))
        try:
            self._model(ids_BL, attention_mask=mask_BL, use_cache=False, **inputs)
        finally:
            wraps.undo()
        self.num_tokens += len(valid_T)

    def layers(self, measure: str = "frobenius") -> dict[int, dict[str, Tensor]]:
        """Layer number -> its tensors (`policies/calibrated.py` names them), of all that was added; `measure` of the
        similarity. Raises ValueError if nothing was added."""
        return {n: self._routed[n].tensors() | self._similar[n].tensors(measure) for n in self._experts}

    def _around(self, number: int, valid_T: Tensor) -> Any:
        routed, similar = self._routed[number], self._similar[number]

        def forward(original: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            def expert(e: int, hidden_ND: Tensor) -> Tensor:
                ids_N1 = torch.full((len(hidden_ND), 1), e, dtype=ids.dtype, device=ids.device)
                return alone(original, hidden_ND, ids_N1, weights)

            hidden_TD = hidden.reshape(-1, hidden.shape[-1])[valid_T]
            ids_TK, weights_TK = (part.reshape(-1, part.shape[-1])[valid_T] for part in (ids, weights))
            rows = max(1, HELD // (routed.num_experts * hidden.shape[-1]))
            for start in range(0, len(hidden_TD), rows):
                part = slice(start, start + rows)
                routed.update(hidden_TD[part], ids_TK[part], weights_TK[part], expert)
                similar.update(hidden_TD[part], expert)
            output: Tensor = original(hidden, ids, weights)
            return output

        return forward


def alone(forward: Any, hidden_ND: Tensor, ids_N1: Tensor, weights: Tensor) -> Tensor:
    """[N, D]: what each row gets of the one expert that it names, unweighted; `weights` lends its type."""
    output: Tensor = forward(hidden_ND, ids_N1, torch.ones_like(ids_N1, dtype=weights.dtype))
    return output.reshape(hidden_ND.shape)  # DBRX adds a dimension


def experts_of(
    model: Any, one: Found, purpose: str = "calibrated; leave sere, exfold and reap out for this model"
) -> Any:
    """The module that takes hidden states, ids and weights of a layer. Raises ValueError where there is none: it cannot
    be used for this `purpose`."""
    block = one.layer.name if one.row.method != "forward" else one.layer.name.rpartition(".")[0]
    experts = inside(getattr(modules_of(model)[block], "experts", None))
    if (
        experts is None
        or type(experts).__name__ in NEVER_ALONE
        or len(inspect.signature(experts.forward).parameters) != 3
    ):
        raise ValueError(
            f"layer {one.layer.name}: its experts cannot be called one by one with ids and weights, so they cannot be "
            f"{purpose}"
        )
    return experts
