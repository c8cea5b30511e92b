"""Models that PEFT has put adapters into: the same layers, remapped, without a warning, and calibrated."""

import warnings

import pytest
import torch
from tiny_transformers import ARCHITECTURES, beside, cache_of, make

import lynx_moe
from lynx_moe.engines.transformers.experts import Collector

peft = pytest.importorskip("peft", reason="peft is not installed")
LINEARS = {
    "deepseek_v4",
    "llama4_text",
    "nemotron_h",
    "phimoe",
}  # all of whose linear layers PEFT cannot adapt


def adapted(name: str, kind: str):
    """The tiny model with adapters, and the names of the layers that `apply` finds without them."""
    model = make(ARCHITECTURES[name])
    routers = [layer.name for layer in lynx_moe.apply(model, "vanilla").layers]
    given = {"target_modules": "all-linear"}
    if kind == "parameters":  # every router's weight and all experts', which are no linear layers
        named = [n for n, p in model.named_parameters() if (".experts." in n and p.dim() == 3) or n[:-7] in routers]
        given = {"target_modules": [], "target_parameters": sorted({".".join(n.split(".")[-2:]) for n in named})}
    elif kind == "whole":
        given["modules_to_save"] = sorted({router.rpartition(".")[2] for router in routers})
        given["target_modules"] = ["q_proj", "v_proj"]
    made = peft.get_peft_model(model, peft.LoraConfig(r=2, **given)).eval()
    with torch.no_grad():
        for weight_name, weight in made.named_parameters():
            if "lora_B" in weight_name:
                weight.normal_(std=0.1)
    return made, routers


@pytest.mark.parametrize("kind", ["linear", "parameters"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adapters_change_no_layer_and_bring_no_warning(name, kind):
    if name in LINEARS and kind == "linear":
        kind = "parameters"
    if name == "dbrx" and kind == "parameters":  # its experts' weights are flat, and its router is a linear layer
        kind = "linear"
    model, routers = adapted(name, kind)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="lynx_moe")
        warnings.filterwarnings("ignore", message=r"lynx_moe: layer .*layers.0.mlp.gate keeps .*hash routing")
        with lynx_moe.apply(model, "topk:k=1") as run, torch.inference_mode():
            cache = cache_of(model(torch.randint(3, 90, (4, 5)), use_cache=True))
            model(torch.randint(3, 90, (4, 1)), **beside(model.get_base_model(), cache))
    assert [layer.name.removeprefix("base_model.model.") for layer in run.layers] == routers
    assert run.stats().mean_after < run.stats().mean_before


@pytest.mark.parametrize("name", ["qwen3_moe", "minimax_m2", "hy_v3", "granitemoe", "jamba", "nemotron_h"])
def test_a_router_that_is_trained_whole_is_the_copy_that_acts(name):
    model, routers = adapted(name, "whole")
    with lynx_moe.apply(model, "topk:k=1") as run, torch.inference_mode():
        cache = cache_of(model(torch.randint(3, 90, (4, 5)), use_cache=True))
        model(torch.randint(3, 90, (4, 1)), **beside(model.get_base_model(), cache))
    assert len(run.layers) == len(routers)
    assert not run.bypassed
    assert run.stats().mean_after < run.stats().mean_before


@pytest.mark.parametrize("name", ["qwen3_moe", "granitemoe", "deepseek_v3", "lfm2_moe", "minimax_m2", "gpt_oss"])
def test_calibration_sees_the_adapted_experts(name):
    """The statistics are those of the model with the adapters merged into its weights."""
    model, _ = adapted(name, "parameters")
    ids, mask = torch.randint(3, 90, (3, 6)), torch.ones(3, 6, dtype=torch.long)
    found = []
    for each in (model, model.merge_and_unload()):
        collector = Collector(each)
        collector.add(ids, mask)
        found.append(collector.layers())
    assert found[0].keys() == found[1].keys()
    for number, tensors in found[0].items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, found[1][number][key], rtol=1e-3, atol=1e-4)
