"""A model larger than memory: `lynx_moe.offload` keeps some experts of each layer, and reads the others when needed."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from lynx_moe.engines.disk.amount import GIB, Amount
from lynx_moe.engines.disk.checkpoint import Checkpoint
from lynx_moe.engines.disk.singles import SingleLayer, Singles
from lynx_moe.engines.disk.slots import Sums
from lynx_moe.engines.disk.store import Store
from lynx_moe.engines.transformers.experts import experts_of
from lynx_moe.engines.transformers.model import layers_of
from lynx_moe.engines.transformers.offloaded.arranging import Arranging
from lynx_moe.engines.transformers.offloaded.held import Held, Rows
from lynx_moe.engines.transformers.offloaded.loading import load, on_meta
from lynx_moe.engines.transformers.wrap import Wraps
from lynx_moe.engines.transformers.wrappers import modules_of


class Offloaded:
    """Made by `offload`. Leaving a `with` block closes it, as `close()` does.

    model    a transformers model on the CPU, in evaluation mode, without gradients.
    layers   names of the experts' modules, in order.
    slots    experts of each of these layers that memory has room for.
    experts  experts of each of these layers.
    bytes    of memory that all slots have together.
    """

    def __init__(self, folder: Path, amount: Amount, dtype: Any, attn_implementation: str | None) -> None:
        checkpoint = Checkpoint(folder)
        try:
            self._open(checkpoint, amount, dtype, attn_implementation)
        except BaseException:
            checkpoint.close()
            raise

    def stats(self) -> Sums:
        """What all layers together did since the last reset: experts that were read (`loads`) and that were there
        already (`hits`), each counted once per layer and forward; bytes read; seconds that forwards waited for reads;
        `rounds`, how often a layer had more experts in a forward than slots."""
        return replace(self._store.sums)

    def reset_stats(self) -> None:
        """Starts all counts at zero; what is in memory stays."""
        self._store.reset()

    def close(self) -> None:
        """Closes the checkpoint's files. A forward that needs an expert from there then raises ReadError."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, checkpoint: Checkpoint, amount: Amount, dtype: Any, attn_implementation: str | None) -> None:
        meta = on_meta(checkpoint.folder)
        modules, arranging = _experts(meta), Arranging(meta, checkpoint)
        layers = [arranging.layer(name, module, count) for name, (module, count, _) in modules.items()]
        top_k = [k for _, _, k in modules.values()]
        slots = [
            amount.slots(layer.num_experts, k, len(layers), layer.expert_bytes)
            for layer, k in zip(layers, top_k, strict=True)
        ]
        given = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        self.model = load(meta, checkpoint, arranging.rest(layers), list(modules), dtype=dtype, **given)
        self._check_dtype(layers)
        self.layers = tuple(modules)
        self.slots, self.experts = tuple(slots), tuple(layer.num_experts for layer in layers)
        self.bytes = sum(count * layer.expert_bytes for count, layer in zip(slots, layers, strict=True))
        self._source = Singles(checkpoint, layers)
        try:
            self._store = Store(self._source, slots)
        except OSError as error:
            raise ValueError(
                f"resident={amount} takes {self.bytes / GIB:.3g} GiB, and there is no such memory: {error.strerror}"
            ) from error
        self._wraps = Wraps()
        for number, layer in enumerate(layers):
            module, held = self.model.get_submodule(layer.name), Held(self._store, number, layer.name)
            for place, part in enumerate(layer.parts):
                setattr(module, part.name, Rows(held, place, (layer.num_experts, *part.shape)))
            self._wraps.add(module, "forward", held.forward)

    def _check_dtype(self, layers: list[SingleLayer]) -> None:
        kinds = {part.dtype for layer in layers for part in layer.parts} | {
            str(self.model.dtype).removeprefix("torch.")
        }
        if len(kinds) > 1:
            raise ValueError(
                f"dtype={self.model.dtype} is not that of the checkpoint's experts, which are read as they lie: "
                f"{layers[0].parts[0].dtype}; leave dtype out, or convert the checkpoint"
            )


def _experts(meta: Any) -> dict[str, tuple[Any, int, int]]:
    """Of each MoE layer in order: name of its experts' module -> that, experts, top-k. Raises ValueError for a model
    without such layers, and where one of them would have to stay in memory whole."""
    found, bypassed, _ = layers_of(meta, None)
    if bypassed:
        name, reason = next(iter(bypassed.items()))
        raise ValueError(f"layer {name} of {type(meta).__name__} cannot be offloaded: {reason}")
    names = {id(module): name for name, module in modules_of(meta).items()}
    why = "offloaded; load this model whole"
    pairs = [(experts_of(meta, one, why), one.layer.spec) for one in found]
    return {names[id(module)]: (module, spec.num_experts, spec.top_k) for module, spec in pairs}
