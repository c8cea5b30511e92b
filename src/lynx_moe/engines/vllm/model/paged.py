"""The experts of one vLLM model on a disk: from before it is built until it is gone. `paging.py` says who calls."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import vllm
from torch import Tensor
from vllm.logger import init_logger
from vllm.model_executor.kernels.linear.zentorch_utils import has_zentorch_op

from lynx_moe.engines.disk import origin, turns
from lynx_moe.engines.disk.amount import GIB, Amount
from lynx_moe.engines.disk.layout import BadFile
from lynx_moe.engines.disk.making import Making, Region
from lynx_moe.engines.disk.reader import Reader
from lynx_moe.engines.disk.store import Store
from lynx_moe.engines.shared.options import KEY
from lynx_moe.engines.vllm.model.operator import paged_experts

logger = init_logger(f"vllm.{KEY}")
PARTS, BIASES = ("w13_weight", "w2_weight"), ("w13_bias", "w2_bias")
READ_FORMATS = ("auto", "hf", "safetensors", "pt")  # that load a checkpoint's files


@dataclass(kw_only=True)
class PagedLayer:
    """shapes: of one packed expert, by part. region: while the file is made. loads: how often the model asked a loader
    to fill its experts. slots: of its memory. bias: of all experts, which stay in memory. kernel: vLLM's, on its slots;
    there when all weights are loaded."""

    layer: Any
    shapes: dict[str, tuple[int, ...]]
    experts: int
    expert_bytes: int
    region: Region | None = None
    loads: int = 0
    packed: bool = False
    slots: int = 0
    bias: dict[str, Tensor] = field(default_factory=dict)
    kernel: Callable[..., None] = lambda **given: None


class Paged:
    """amount: of experts in memory. folder: of expert files. `store` is there when all weights are loaded."""

    def __init__(self, amount: Amount, folder: Path, vllm_config: Any) -> None:
        self.amount, self.folder = amount, folder
        self.model_config, self.load_config = vllm_config.model_config, vllm_config.load_config
        self.layers: list[PagedLayer] = []
        self.made_from: dict[str, Any] = {}
        self.making: Making | None = None
        self.reader: Reader | None = None
        self.store: Store | None = None

    def take(self, method: Any, layer: Any) -> None:
        """A layer's parameters have been created: they take no memory of the process from now on."""
        kernel, loaded = method.experts_cls, {name: getattr(layer, name).data for name in PARTS}
        if layer.expert_map is not None or not hasattr(kernel, "_padded_intermediate_size"):
            raise ValueError(
                f"experts_resident: the experts of {layer.layer_name} run by {kernel.__name__}, not on a CPU"
            )
        if has_zentorch_op(["zentorch_fused_moe"]):
            raise ValueError(
                "experts_resident: zentorch's kernel takes experts in a layout of its own; uninstall zentorch"
            )
        padded, hidden = int(kernel._padded_intermediate_size(method.moe)), loaded["w13_weight"].shape[2]
        if method.moe.has_bias and 2 * padded != loaded["w13_weight"].shape[1]:
            raise ValueError(
                f"experts_resident: {layer.layer_name} has biases, and experts whose size has to be padded"
            )
        if not self.layers:
            self._open(kernel)
        shapes: dict[str, tuple[int, ...]] = {"w13_weight": (2 * padded, hidden), "w2_weight": (hidden, padded)}
        size = sum(math.prod(shape) for shape in shapes.values()) * loaded["w13_weight"].element_size()
        paged = PagedLayer(layer=layer, shapes=shapes, experts=len(loaded["w13_weight"]), expert_bytes=size)
        self.layers.append(paged)
        if self.making is not None:
            paged.region = self.making.add(layer.layer_name, loaded, shapes)
        for name in PARTS:
            param = getattr(layer, name)
            if paged.region is None:
                param.data, loader = param.data.new_zeros(()).expand(param.shape), _pass_by
            else:
                param.data, loader = paged.region.tensors[name], partial(_load, paged, param.weight_loader)
                loader.supports_moe_loading = True  # type: ignore[attr-defined]
            param.weight_loader = loader

    def fit(self) -> None:
        """All layers are there, and no weight is loaded. Raises ValueError where the memory is too little."""
        for one in self.layers:
            one.slots = self.amount.slots(one.experts, one.layer.top_k, len(self.layers), one.expert_bytes)

    def pack(self, method: Any, layer: Any) -> None:
        """In place of what vLLM does when all weights are loaded. Raises BadFile for a file of another model."""
        paged = next(one for one in self.layers if one.layer is layer)
        method._init_moe_kernel(layer)
        for name in PARTS:
            param = getattr(layer, name)
            param.data = param.data.new_zeros(()).expand(1, *paged.shapes[name])
        if paged.region is not None:
            paged.region.pack(partial(_packed, method.moe_kernel.fused_experts))
        paged.packed = True
        if all(one.packed for one in self.layers):
            self._serve()

    def apply(
        self, number: int, *, output: Tensor, hidden_states: Tensor, topk_weights: Tensor, topk_ids: Tensor, **_: Any
    ) -> None:
        """In place of a kernel's apply, of layer `number`: the step's experts are there when it runs. What else it is
        given is the same in every step."""
        fill = paged_experts if torch.compiler.is_compiling() else self.compute
        fill(output, hidden_states, topk_weights, topk_ids, number)

    def compute(self, output: Tensor, hidden: Tensor, weights: Tensor, ids: Tensor, number: int) -> None:
        """Fills output [T, H] by the experts of layer `number`. Raises ReadError where one cannot be had."""
        assert self.store is not None
        paged, slots = self.layers[number], self.store.layers[number]

        def run(output: Tensor, hidden: Tensor, weights: Tensor, ids: Tensor) -> None:
            for name, bias in paged.bias.items():
                getattr(paged.layer, name).data = bias[torch.from_numpy(slots.expert_K)]
            paged.kernel(output=output, hidden_states=hidden, topk_weights=weights, topk_ids=ids)

        if paged.layer.apply_router_weight_on_input:  # they are in `hidden`
            weights = torch.ones_like(weights)
        turns.compute(slots, self.store.sums, run, output, hidden, weights.contiguous(), ids.contiguous())

    @property
    def target(self) -> Path | None:
        """Where the file is kept; None: it goes with the engine, since nobody could know it again."""
        if self.made_from["weights"] is None:
            return None
        digest = hashlib.sha256(json.dumps(self.made_from, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{Path(str(self.model_config.model)).name}-{digest[:16]}.experts"

    def _open(self, kernel: type) -> None:
        config = self.model_config.hf_config.to_json_string().encode()
        self.made_from = {
            "weights": self._digest(),
            "config": hashlib.sha256(config).hexdigest(),
            "vllm": vllm.__version__,
            "kernel": kernel.__name__,
            "dtype": str(self.model_config.dtype),
        }
        if self.target is not None and self.target.exists():
            self.reader = Reader(self.target, self.made_from)
        else:
            self.making = Making(self.folder)

    def _digest(self) -> str | None:
        if self.load_config.load_format not in READ_FORMATS:
            return None
        folder = Path(self.model_config.model)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            name, revision = str(self.model_config.model), self.model_config.revision
            try:
                folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
            except Exception:  # not here yet: vLLM fetches it when it loads
                return None
        return origin.digest(folder)

    def _serve(self) -> None:
        if self.making is not None:
            asked = all(one.loads for one in self.layers)  # a model that fills them by itself could not pass by
            self.made_from["weights"] = self._digest() if asked else None
            self.making.finish(self.target, self.made_from)
            self.reader = Reader(self.making.path, self.made_from)
            self.reader.path = self.target or self.folder / "(without a name)"
            self.making.discard()
            self.making = None
        assert self.reader is not None
        self._check(self.reader)
        self.store = Store(self.reader, [one.slots for one in self.layers])
        for paged, slots in zip(self.layers, self.store.layers, strict=True):
            paged.region = None
            for name, table in zip(PARTS, slots.tables, strict=True):
                getattr(paged.layer, name).data = table
                getattr(paged.layer, name).weight_loader = _refuse
            paged.bias = {name: getattr(paged.layer, name).data for name in BIASES if hasattr(paged.layer, name)}
            experts = paged.layer.quant_method.moe_kernel.fused_experts
            paged.kernel = partial(experts.apply, w1=slots.tables[0], w2=slots.tables[1], **_unchanging(paged.layer))
            experts.apply = partial(self.apply, slots.number)
        told, reader = self.store.told(), self.reader
        how = "" if reader.direct else f", through the page cache, since {reader.indirect}"
        logger.info(
            "%s: %d of %d experts fit into %.3g GiB of memory, the others are read from %s%s",
            KEY,
            told["slots"],
            told["experts"],
            told["slot_bytes"] / GIB,
            reader.path,
            how,
        )

    def _check(self, reader: Reader) -> None:
        mine = [(one.layer.layer_name, one.experts, [*one.shapes.values()]) for one in self.layers]
        its = [(one.name, one.num_experts, [part.shape for part in one.parts]) for one in reader.layers]
        if mine != its:
            raise BadFile(f"{reader.path} holds other layers than the model has; delete it, and it is made again")


def _unchanging(layer: Any) -> dict[str, Any]:
    """What vLLM's kernel is given in every step; the CPU's have no use for most of it."""
    nothing = ("expert_map", "a1q_scale", "a2_scale", "workspace13", "workspace2", "expert_tokens_meta")
    return dict.fromkeys(nothing) | {
        "activation": layer.activation,
        "global_num_experts": layer.global_num_experts,
        "apply_router_weight_on_input": layer.apply_router_weight_on_input,
    }


def _packed(experts: Any, parts: dict[str, Tensor]) -> list[Tensor]:
    """One expert as its kernel takes it, by vLLM's own hands."""
    one = torch.nn.Module()
    for name, tensor in parts.items():
        one.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    experts.process_weights_after_loading(one)
    return [getattr(one, name).data for name in PARTS]


def _load(paged: PagedLayer, loader: Callable[..., Any], *args: Any, **given: Any) -> Any:
    paged.loads += 1
    return loader(*args, **given)


def _pass_by(*args: Any, return_success: bool = False, **given: Any) -> bool | None:
    """The file has it."""
    return True if return_success else None


def _refuse(*args: Any, **given: Any) -> None:
    raise ValueError(f"{KEY}: weights cannot be loaded anew while experts_resident is on; start the engine again")


_pass_by.supports_moe_loading = True  # type: ignore[attr-defined]
