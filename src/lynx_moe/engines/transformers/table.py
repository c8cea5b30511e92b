"""The table of router classes, and the MoE layers that it finds in a model. A new family is one row here.

Read from transformers 5.19; the families that it had are the same in 5.17 and 5.24.
"""

from typing import Any, NamedTuple

from lynx_moe.engines.shared.layers import Bypass, Layer
from lynx_moe.engines.transformers import layouts, specs
from lynx_moe.engines.transformers.layouts import Layout
from lynx_moe.engines.transformers.specs import Reader
from lynx_moe.engines.transformers.wrappers import modules_of


class Row(NamedTuple):
    """Classes that are called alike, return alike and follow one rule. `method` is what picks the experts: a router's
    forward, or a method of the MoE block where the router gives logits only."""

    classes: str
    layout: Layout
    spec: Reader
    method: str = "forward"


ROWS = (
    Row("MixtralTopKRouter MiniMaxTopKRouter GptOssTopKRouter GraniteMoeSWATopKRouter HunYuanMoEV1Gate "
        "Qwen3_5MoeTopKRouter", layouts.TUPLE, specs.softmax),
    Row("OlmoeTopKRouter FlexOlmoTopKRouter Qwen2MoeTopKRouter Qwen3MoeTopKRouter Qwen3NextTopKRouter "
        "Qwen4ExpTextTopKRouter MellumTopKRouter", layouts.TUPLE, specs.softmax_by_flag),
    Row("GraniteMoeTopKRouter GraniteMoeHybridTopKRouter GraniteMoeSharedTopKRouter AriaTextTopKRouter",
        layouts.TUPLE, specs.softmax),
    Row("DeepseekV2TopkRouter", layouts.TUPLE, specs.deepseek_v2),
    Row("DeepseekV3TopkRouter DeepseekV32TopkRouter AXK1TopkRouter AXK2TopkRouter Dots1TopkRouter ExaoneMoeTopkRouter "
        "Glm4MoeTopkRouter Glm4MoeLiteTopkRouter GlmMoeDsaTopkRouter HYV4TopkRouter KimiLinearTopkRouter "
        "MiMoV2FlashTopkRouter NemotronHTopkRouter SolarOpenTopkRouter", layouts.TUPLE, specs.deepseek_v3),
    Row("Mistral4TopkRouter", layouts.TUPLE, specs.mistral4),
    Row("DeepseekV4TopKRouter", layouts.TUPLE, specs.deepseek_v4),
    Row("MiniMaxM3VLTopKRouter LagunaTopKRouter", layouts.TUPLE, specs.sigmoid_biased),
    Row("MiniMaxM2TopKRouter", layouts.TUPLE, specs.minimax_m2),
    Row("HYV3TopKRouter", layouts.TUPLE, specs.hy_v3),
    Row("AfmoeTokenChoiceRouter", layouts.TUPLE, specs.afmoe),
    Row("Lfm2MoeTopKRouter", layouts.TUPLE, specs.lfm2),
    Row("Ernie4_5_MoeTopKRouter", layouts.TUPLE, specs.softmax_biased),
    Row("Cohere2MoeTopKRouter", layouts.TUPLE, specs.softmax_or_sigmoid),
    Row("LongcatFlashTopkRouter", layouts.TUPLE, specs.longcat),
    Row("PhimoeTopKRouter", layouts.TUPLE, specs.sparsemixer),
    Row("Gemma4TextRouter", layouts.PROBABILITIES_FIRST, specs.softmax_scaled),
    Row("Llama4Router", layouts.DENSE, specs.sigmoid_raw),
    Row("JetMoeTopKGating", layouts.GROUPED, specs.softmax),
    Row("DbrxFFN", layouts.WEIGHTS_IDS, specs.dbrx, method="route_tokens_to_experts"),
    Row("JambaTopKRouter", layouts.TUPLE, specs.softmax_raw),
    Row("JambaSparseMoeBlock", layouts.IDS_WEIGHTS, specs.softmax_raw, method="route_tokens_to_experts"),
)  # fmt: skip
BY_CLASS = {name: row for row in ROWS for name in row.classes.split()}
REASONS = {
    "DeepseekV4HashRouter": "experts are chosen by token id (hash routing), not by logits",
    "ZayaRouter": "one of its choices is to skip the layer, which batch-aware routing does not model",
    "InklingTopkRouter": "it weighs shared and routed experts together, so other routed experts change the shared ones",
    "DogeCDMoE": "its experts are rows of an embedding, found by product keys inside the block: there is no router",
}


class Found(NamedTuple):
    """A layer that a policy can act on: the object whose `row.method` picks its experts."""

    layer: Layer
    picker: Any
    row: Row


def find(model: Any) -> tuple[list[Found], dict[str, str]]:
    """The MoE layers of a model in order, and for those that keep the model's own routing: name -> why."""
    modules = modules_of(model)
    found: list[Found] = []
    bypassed: dict[str, str] = {}
    for name, module in modules.items():
        kind = _known_class(module)
        if kind in REASONS:
            bypassed[name] = REASONS[kind]
        elif kind is not None and hasattr(module, BY_CLASS[kind].method):
            row, around = BY_CLASS[kind], modules[name.rpartition(".")[0]]
            try:
                found.append(Found(Layer(name=name, spec=row.spec(module, around)), module, row))
            except (Bypass, ValueError) as error:
                bypassed[name] = str(error)
    known = [one.layer.name for one in found] + list(bypassed)
    for name, module in modules.items():
        block = name.rpartition(".")[0] + "."
        if type(module).__name__.endswith("Experts") and not any(f"{k}.".startswith(block) for k in known):
            bypassed[name] = f"the router of {type(module).__name__} is not known"
    return found, bypassed


def _known_class(module: Any) -> str | None:
    """By transformers' own classes and those derived from them: code from a hub may mean something else by a name."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("transformers.models.") and kind.__name__ in BY_CLASS | REASONS:
            return kind.__name__
    return None
