"""LoRA: a request that uses an adapter is remapped, or exact, like any other.

With LoRA vLLM takes its Triton kernels for experts, which its CPU build does not have; here the CPU's own stand in
their place, and the adapter is one of the attention. Layers are wrapped as ever (`FusedMoEWithLoRA`).
"""

import copy
import json

import pytest
import torch
from asking import BLOCK, logprobs
from safetensors.torch import save_file
from tiny_vllm import engine, model_of, tokens
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method as method
from vllm.model_executor.layers.fused_moe.experts.lora_experts_mixin import LoRAExpertsMixin

from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.testbed import path, tasks

MODEL, POLICY, RANK = path("qwen3-moe"), "lynx:alpha=0.3,beta=1", 8
OPTIONS = {"enable_lora": True, "max_model_len": 512, "dtype": "auto", "skip_tokenizer_init": False}
OPTIONS |= {"block_size": BLOCK, "max_num_batched_tokens": 64}
PROMPTS = [tasks.test_items(task, 1, seed=3)[0].prompt for task in tasks.TASKS]
WISHES = ("exact", None, "fast", "exact", "random:num_keep=16")  # every other request has the adapter


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A random adapter of all attention layers' queries and values, in peft's format."""
    folder, config = tmp_path_factory.mktemp("adapter"), json.loads((MODEL / "config.json").read_text())
    heads = {"q_proj": config["num_attention_heads"], "v_proj": config["num_key_value_heads"]}
    torch.manual_seed(5)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, count in heads.items():
            where = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{where}.lora_A.weight"] = torch.randn(RANK, config["hidden_size"]) * config["hidden_size"] ** -0.5
            weights[f"{where}.lora_B.weight"] = 0.5 * torch.randn(count * config["head_dim"], RANK) * RANK**-0.5
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(heads), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return LoRARequest("random", 1, str(folder))


@pytest.fixture(scope="module")
def cpu_kernels():
    """Experts that run here, and take no notice of adapters of experts."""
    select = method.select_unquantized_moe_backend

    def selected(moe_config):
        without = copy.copy(moe_config)
        without.is_lora_enabled = False
        backend, kernels = select(without)
        return backend, type("Experts", (LoRAExpertsMixin, kernels), {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "select_unquantized_moe_backend", selected)
        yield


def ask(llm, adapters, wishes, prompts=PROMPTS, length=16):
    """Greedy answers of requests that have the adapters, and ask for the wishes, in turn."""
    greedy = {"temperature": 0.0, "ignore_eos": True, "logprobs": 2, "max_tokens": length}
    asked = [wishes[i % len(wishes)] for i in range(len(prompts))]
    params = [SamplingParams(**greedy, extra_args=wish and {"lynx_moe": wish}) for wish in asked]
    each = [adapters[i % len(adapters)] for i in range(len(prompts))]
    return llm.generate(prompts, params, lora_request=each, use_tqdm=False)


@pytest.fixture(scope="module")
def plain(cpu_kernels, adapter):
    """What plain vLLM answers."""
    with engine(str(MODEL), **OPTIONS) as llm:
        outputs = ask(llm, (adapter, None), (None,))
        llm.reset_prefix_cache()
        assert tokens(ask(llm, (None,), (None,)))[::2] != tokens(outputs)[::2]  # the adapter matters
        return outputs


@pytest.fixture(scope="module")
def llm(plain):
    with engine(str(MODEL), POLICY, **OPTIONS) as llm:
        yield llm


def test_where_vllm_s_kernels_for_adapters_do_not_run_the_engine_does_not_start():
    """Stands first: the others put kernels in their place."""
    message = (
        r"lynx_moe: with LoRA vLLM takes TritonExperts for the experts of model\.layers\.0\.mlp\.experts.*enable_lora"
    )
    with pytest.raises(ValueError, match=message), engine(str(MODEL), POLICY, **OPTIONS):
        pass


def test_an_exact_request_with_an_adapter_gets_plain_vllm_s_answer_among_remapped_ones(plain, llm, adapter):
    kinds = {type(module).__name__ for module in model_of(llm).modules()}
    assert {"FusedMoEWithLoRA", "MergedQKVParallelLinearWithLoRA"} <= kinds
    llm.reset_prefix_cache()
    lynx_vllm.reset_stats()
    outputs = ask(llm, (adapter, None), WISHES)
    exact = [i for i in range(len(PROMPTS)) if WISHES[i % len(WISHES)] == "exact"]
    assert {i % 2 for i in exact} == {0, 1}
    assert [tokens([outputs[i]]) for i in exact] == [tokens([plain[i]]) for i in exact]
    assert [logprobs(outputs[i]) for i in exact] == [logprobs(plain[i]) for i in exact]
    stats = lynx_vllm.stats()
    assert stats.mean_after < 0.9 * stats.mean_before


def test_the_prefix_cache_tells_adapters_apart_and_keeps_what_was_remapped(llm, adapter):
    llm.reset_prefix_cache()
    prompts = [{"prompt_token_ids": list(range(5 + i, 45 + i))} for i in range(4)]
    answers = ask(llm, (adapter,), (None,), prompts, length=60)
    again = [{"prompt_token_ids": [*prompts[0]["prompt_token_ids"], *answers[0].outputs[0].token_ids, 7]}]
    assert ask(llm, (None,), ("exact",), again)[0].num_cached_tokens == 0
    assert ask(llm, (adapter,), ("exact",), again)[0].num_cached_tokens == BLOCK  # the prompt's own block
