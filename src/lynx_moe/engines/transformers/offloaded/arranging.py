"""From a checkpoint's tensors to the experts' parameters: which bytes of which file are one expert.

transformers says it itself: its table of conversions renames a checkpoint's tensors, stacks those of single experts and
joins gate and up. Here the same conversion runs on the numbers of one expert's elements. Where they come out in order,
the bytes as they stand are the parameter; experts that would have to be turned or mixed are refused.
"""

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lynx_moe.engines.disk.checkpoint import Checkpoint, Stored
from lynx_moe.engines.disk.singles import SingleLayer, SinglePart, Span

Sources = list[tuple[str | None, str]]
"""Of one parameter, in transformers' order: the conversion's pattern (None: there is none) and the stored tensor."""


class Arranging:
    """Of a model on the meta device and its checkpoint. `rest` are the tensors of all that is no expert."""

    def __init__(self, model: Any, checkpoint: Checkpoint) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        self.model, self.checkpoint = model, checkpoint
        mapping = get_model_conversion_mapping(model)
        converters = [one for one in mapping if isinstance(one, WeightConverter)]
        renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
        self.by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
        known = model.state_dict()
        self.sources: dict[str, Sources] = {}
        for key in sorted(checkpoint.tensors, key=_natural):
            target, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, known)
            if target not in known and key in known:
                target, pattern = key, None
            if target in known:
                self.sources.setdefault(target, []).append((pattern, key))

    def layer(self, name: str, experts: Any, num_experts: int) -> SingleLayer:
        """The experts of the module of this name. Raises ValueError where they cannot be read one by one."""
        if any(True for child in experts.children() for _ in child.parameters()):
            raise ValueError(f"the experts of {name} are modules of their own, which are not read one by one")
        parts = tuple(
            self._part(f"{name}.{part}", part, param, num_experts) for part, param in experts.named_parameters()
        )
        return SingleLayer(name=name, num_experts=num_experts, parts=parts)

    def rest(self, layers: list[SingleLayer]) -> list[str]:
        """The checkpoint's tensors that the model takes and that belong to none of these layers."""
        experts = {f"{layer.name}.{part.name}" for layer in layers for part in layer.parts}
        return [key for target, sources in self.sources.items() if target not in experts for _, key in sources]

    def _part(self, target: str, name: str, param: Tensor, num_experts: int) -> SinglePart:
        sources = self.sources.get(target, [])
        if not sources:
            raise ValueError(f"{self.checkpoint.folder} has nothing for {target}: it is a checkpoint of another model")
        stored = [self.checkpoint.tensors[key] for _, key in sources]
        kinds = {one.dtype for one in stored}
        if len(kinds) > 1 or not hasattr(torch, stored[0].dtype):
            raise ValueError(f"{target} is of {' and '.join(sorted(kinds))} in the checkpoint, which is not read")
        if len(param) != num_experts:
            raise ValueError(
                f"{target} has {list(param.shape)} numbers, and not one row for each of {num_experts} experts"
            )
        found = list(self._experts(sources, stored, num_experts))
        if not self._in_order(target, sources, found, tuple(param.shape[1:])):
            shapes = ", ".join(sorted({str(list(one.shape)) for one in stored}))
            raise ValueError(
                f"{target}: experts that lie in the checkpoint as {shapes} cannot be read one by one, since "
                f"transformers turns or mixes them to {list(param.shape)}; load this model whole"
            )
        spans = [tuple(Span(one.file, one.offset, one.bytes) for one in parts) for parts in found]
        return SinglePart(name=name, shape=tuple(param.shape[1:]), dtype=stored[0].dtype, spans_E=spans)

    def _experts(self, sources: Sources, stored: list[Stored], num_experts: int) -> Iterator[list[Stored]]:
        """Of each expert what the conversion takes: a tensor of its own, or its row of one of all experts. Nothing
        where it is neither."""
        by_pattern: dict[str | None, list[Stored]] = {}
        for (pattern, _), one in zip(sources, stored, strict=True):
            by_pattern.setdefault(pattern, []).append(one)
        for expert in range(num_experts):
            parts = []
            for tensors in by_pattern.values():
                if len(tensors) == num_experts and None not in by_pattern:
                    parts.append(tensors[expert])
                elif len(tensors) == 1 and tensors[0].shape[:1] == (num_experts,):
                    parts.append(_row(tensors[0], expert, num_experts))
            if len(parts) == len(by_pattern):
                yield parts

    def _in_order(self, target: str, sources: Sources, found: list[list[Stored]], shape: tuple[int, ...]) -> bool:
        if not found:
            return False
        numbers, start = [], 0
        for one in found[0]:
            size = torch.Size(one.shape).numel()
            numbers.append(torch.arange(start, start + size, dtype=torch.int32).view(one.shape))
            start += size
        patterns = list(dict.fromkeys(pattern for pattern, _ in sources))
        if patterns[0] is None:
            (made,) = numbers
        else:
            converter = copy.deepcopy(self.by_pattern[patterns[0]])
            for pattern, numbered in zip(patterns, numbers, strict=True):
                converter.add_tensor(target, target, pattern, numbered)
            made = converter.convert(target, model=self.model, config=self.model.config).get(target)
            made = made[0] if isinstance(made, list) else made
        whole = made is not None and made.shape in ((1, *shape), shape)
        return whole and torch.equal(made.flatten(), torch.arange(start, dtype=torch.int32))


def _row(stored: Stored, expert: int, num_experts: int) -> Stored:
    size = stored.bytes // num_experts
    return Stored(stored.file, (1, *stored.shape[1:]), stored.dtype, stored.offset + expert * size, size)


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers in a name count as numbers, as transformers sorts them."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"\.", name)]
