"""What `generate` knows and a forward does not: the plain attention mask, and which sequences have ended.

With a static cache `generate` hands 4-D masks to the model, and sequences that have ended are fed padding under a mask
of ones. Both are known where it prepares the inputs of a forward, which is also outside any compiled graph.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lynx_moe.engines.transformers.cache import cache_in, past_length
from lynx_moe.engines.transformers.rows import StepRows, of_forward


class Generation:
    """Watches `model.generate`. `pending` are the rows of the forward that it has prepared, `on_step` is called before
    each."""

    def __init__(self, model: Any, phase: str, on_step: Callable[[], None]) -> None:
        self.model, self.phase, self.on_step = model, phase, on_step
        self.pending: StepRows | None = None
        self.end_ids: list[int] = []
        self.generated = 0

    def generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around `model.generate`."""
        self.end_ids, self.generated = end_ids(self.model, args, kwargs), 0
        try:
            return original(*args, **kwargs)
        finally:
            self.end_ids, self.pending = [], None

    def prepare(self, original: Callable[..., Any], input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Around `model.prepare_inputs_for_generation`."""
        inputs = original(input_ids, *args, **kwargs)
        self.on_step()
        ended_B = None
        decodes = kwargs.get("next_sequence_length") == 1 and not kwargs.get("is_first_iteration")
        if decodes:
            # Every such call follows one more generated token; the last `generated` columns are no prompt's.
            self.generated += 1
            if self.end_ids:
                ids_N = torch.tensor(self.end_ids, device=input_ids.device)
                ended_B = torch.isin(input_ids[:, -self.generated :], ids_N).any(1)
        tokens = inputs.get("input_ids")
        tokens = inputs["inputs_embeds"] if tokens is None else tokens
        past, mask_BS = past_length(cache_in(inputs.values())), kwargs.get("attention_mask")
        size = tokens.shape[:2]
        self.pending = of_forward(self.phase, size, past, mask_BS, ended_B=ended_B, is_prompt=not decodes)
        return inputs


def end_ids(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """The ids that tell an ended sequence in this call of `generate(inputs, generation_config, ...)`: those that end
    it, and with `stop_strings` also the padding, which `generate` then feeds to sequences that these have ended."""
    config = kwargs.get("generation_config", args[1] if len(args) > 1 else None)

    def ids(name: str) -> list[int]:
        """As transformers resolves them: the argument goes before the given configuration, that before the model's."""
        value = kwargs.get(name, getattr(config, name, None))
        if value is None and name not in kwargs:
            value = getattr(model.generation_config, name)
        if isinstance(value, Tensor):
            value = value.tolist()
        return [] if value is None else list(value) if isinstance(value, Iterable) else [int(value)]

    ends = ids("eos_token_id")
    stops = kwargs.get("stop_strings", getattr(config, "stop_strings", None))
    return ends + ids("pad_token_id") if ends and stops else ends
