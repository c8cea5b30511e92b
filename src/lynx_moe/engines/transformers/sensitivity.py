"""What a lost slot does to the answer, layer by layer and expert by expert: a few passes backwards.

Every slot of every layer gets a factor of 1. When a slot's expert is lost its factor becomes 0. KL from the exact model
is, to second order, half the Fisher information of that factor: half the mean square of what a drawn token's
log-likelihood changes with it, over draws from the model itself (the criterion of arXiv 1801.05787 for pruning).

Shapes: B sequences of L tokens, T = B * L, E experts, K = top_k, R draws, V entries of the vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from lynx_moe.calibration.artifact import layer_number
from lynx_moe.calibration.statistics import SensitivityStatistics
from lynx_moe.engines.transformers.experts import experts_of
from lynx_moe.engines.transformers.model import checked, layers_of
from lynx_moe.engines.transformers.wrap import Wraps

Slots = tuple[Tensor, Tensor, Tensor]  # a layer's factors, ids and weights, [T, K] each


class Sensitivity:
    """Sums over the batches that are added. draws: continuations per batch, of all its tokens at once; a derivative
    of their sum by a slot's factor holds what the slot does to its own and to all later tokens of its sequence.

    Raises ValueError for a model without MoE layers, and for one whose experts cannot be called with weights.
    """

    def __init__(self, model: Any, draws: int = 2, seed: int = 0) -> None:
        self._model, self._draws = checked(model), draws
        self._generator = torch.Generator().manual_seed(seed)
        found, _, _ = layers_of(self._model, None)
        self._experts = {layer_number(one.layer.name): experts_of(self._model, one) for one in found}
        self._sums = {layer_number(one.layer.name): SensitivityStatistics(one.layer.spec.num_experts) for one in found}

    def add(self, ids_BL: Tensor, mask_BL: Tensor, **inputs: Any) -> None:
        """One forward over a batch and a pass backwards for each draw; mask_BL is 0 for padding, which counts nowhere.
        `inputs` go to the model."""
        slots: dict[int, Slots] = {}
        wraps = Wraps()
        for number, experts in self._experts.items():
            wraps.add(experts, "forward", _around(number, slots))
        try:
            with torch.enable_grad():
                logits = self._model(ids_BL, attention_mask=mask_BL, use_cache=False, **inputs).logits
                log_TV = logits.flatten(0, 1)[mask_BL.flatten().bool()].float().log_softmax(-1)
        finally:
            wraps.undo()
        drawn_TR = torch.multinomial(log_TV.detach().cpu().exp(), self._draws, True, generator=self._generator)
        factors = [slots[number][0] for number in self._experts]
        for draw in range(self._draws):
            told = log_TV.gather(1, drawn_TR[:, draw, None].to(log_TV.device)).sum()
            gradients = torch.autograd.grad(told, factors, retain_graph=draw + 1 < self._draws)
            for number, gradient in zip(self._experts, gradients, strict=True):
                _, ids, weights = slots[number]
                parts = (gradient, ids, weights)
                valid_T = mask_BL.flatten().bool()
                self._sums[number].update(*(part.reshape(-1, part.shape[-1])[valid_T] for part in parts))

    def layers(self) -> dict[int, dict[str, Tensor]]:
        """Layer number -> {"sensitivity": [E]}. Raises ValueError if nothing was added."""
        return {number: sums.tensors() for number, sums in self._sums.items()}


def _around(number: int, slots: dict[int, Slots]) -> Any:
    def forward(original: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        factors = torch.ones_like(weights, requires_grad=True)
        slots[number] = (factors, ids, weights.detach())
        output: Tensor = original(hidden, ids, weights * factors)
        return output

    return forward
