"""Tiny random MoE checkpoints of many families, and vLLM engines on them that leave the process as they found it."""

import gc
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 512
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,
    "v_head_dim": 32,
    "head_dim": 64,
    "moe_intermediate_size": 32,
    "n_routed_experts": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 32, "moe_intermediate_size": 32, "norm_topk_prob": True}),
    "olmoe": ("Olmoe", {"num_experts": 32, "num_key_value_heads": 4}),
    "mixtral": ("Mixtral", {"num_local_experts": 16, "num_experts_per_tok": 2}),
    "deepseek_v2": (
        "DeepseekV2",
        {**MLA, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.0},
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **MLA,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {"num_local_experts": 32, "layer_types": ["full_attention"] * 2, "sliding_window": 128},
    ),
    "phimoe": (
        "Phimoe",
        {"num_local_experts": 16, "num_experts_per_tok": 2, "attention_bias": True, "lm_head_bias": True},
    ),
    "gemma4": (
        "Gemma4Text",
        {
            "enable_moe_block": True,
            "num_experts": 32,
            "top_k_experts": 4,
            "moe_intermediate_size": 32,
            "hidden_size_per_layer_input": 0,
            "global_head_dim": 32,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "dbrx": (
        "Dbrx",
        {
            "d_model": 128,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 512,
            "num_experts_per_tok": None,  # as published: only ffn_config says it
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 16, "moe_top_k": 4},
        },
    ),
    "qwen3": ("Qwen3", {}),
    "glm4_moe": (
        "Glm4Moe",
        {
            "moe_intermediate_size": 32,
            "n_routed_experts": 32,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "num_hidden_layers": 3,
        },
    ),
    "qwen3_next": (
        "Qwen3Next",
        {
            "num_experts": 32,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "norm_topk_prob": True,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
    ),
}


def save_model(family: str, folder: Path) -> str:
    """A checkpoint whose gates have logits of standard deviation about 1 (`load_format="dummy"` has none to speak of:
    there every token takes the same experts)."""
    prefix, special = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**COMMON, **special})
    model = transformers.AutoModelForCausalLM.from_config(config)
    torch.manual_seed(11)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.fill_(1.0)
            elif name.endswith("scale"):
                weight.uniform_(0.5, 1.5)
            elif weight.dim() < 2 or name.endswith(("bias", "sinks")):
                weight.normal_(std=0.1)
            else:
                weight.normal_(std=weight.shape[-1] ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


@contextmanager
def transformers_left_alone() -> Iterator[None]:
    """vLLM's Transformers backend writes itself into the class of the model in transformers, for good: whoever makes
    such a model in this process afterwards, without vLLM, gets an error. Here the classes are put back."""
    from vllm.model_executor.models.transformers.base import Base

    before: list[tuple[type, tuple[type, ...], dict[str, Any]]] = []
    decorate = Base._decorate_cls_for_torch_compile

    def remember(self: Any, cls: type, *args: Any, **kwargs: Any) -> None:
        before.append((cls, cls.__bases__, dict(vars(cls))))
        decorate(self, cls, *args, **kwargs)

    Base._decorate_cls_for_torch_compile = remember
    try:
        yield
    finally:
        Base._decorate_cls_for_torch_compile = decorate
        for cls, bases, own in reversed(before):
            cls.__bases__ = bases
            for name in set(vars(cls)) - set(own):
                delattr(cls, name)
            for name in [name for name in own if vars(cls)[name] is not own[name]]:
                setattr(cls, name, own[name])


@contextmanager
def engine(model: str, policy: str | None = None, **kwargs: Any) -> Iterator[Any]:
    """An eager engine of 16 sequences unless kwargs say otherwise, in which no step runs twice; without `policy` the
    plugin stays inert."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    if policy is not None:
        kwargs.setdefault("additional_config", {"lynx_moe": {"policy": policy, "shadow": 0}})
    defaults = {"enforce_eager": True, "max_model_len": 256, "max_num_seqs": 16, "dtype": "bfloat16"}
    defaults["skip_tokenizer_init"] = True
    try:
        with transformers_left_alone():
            llm = LLM(model=model, **{**defaults, **kwargs})
            try:
                yield llm
            finally:
                llm.llm_engine.engine_core.shutdown()
                del llm
    finally:
        cleanup_dist_env_and_memory()
        gc.collect()


def prompts(count: int, seed: int, longest: int = 40) -> list[dict[str, list[int]]]:
    rng = random.Random(seed)
    lengths = [rng.randint(1, longest) for _ in range(count)]
    return [{"prompt_token_ids": [rng.randrange(VOCAB) for _ in range(length)]} for length in lengths]


def generate(
    llm: Any, requests: list[dict[str, list[int]]], wishes: Sequence[str | None] = (None,), **params: Any
) -> list[Any]:
    """Greedy, 4 to 23 new tokens depending on the request, so that requests end and start at different steps. The
    requests ask for the wishes in turn."""
    from vllm import SamplingParams

    greedy = {"temperature": 0.0, "ignore_eos": True, "detokenize": False, **params}
    asked = [wish and {"lynx_moe": wish} for wish in wishes]
    each = [
        SamplingParams(max_tokens=4 + (7 * i) % 20, extra_args=asked[i % len(asked)], **greedy)
        for i in range(len(requests))
    ]
    return llm.generate(requests, each, use_tqdm=False)  # type: ignore[no-any-return]


def tokens(outputs: list[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def model_of(llm: Any) -> Any:
    return runner_of(llm).get_model()


def runner_of(llm: Any) -> Any:
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner


def prompt_kv(llm: Any, prompt: Sequence[int], block: int) -> tuple[int, torch.Tensor]:
    """An exact request for this prompt: how many of its tokens came from a cache, and the KV of its whole blocks that
    its answer reads, float32 [layers, blocks, numbers], whoever wrote it."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, extra_args={"lynx_moe": "exact"})
    llm.llm_engine.add_request("reader", {"prompt_token_ids": list(prompt)}, params)
    while not (outputs := llm.llm_engine.step()):  # chunks of the prompt
        pass
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    (number,) = scheduler.requests
    blocks = scheduler.kv_cache_manager.get_block_ids(number)[0][: len(prompt) // block]
    total = scheduler.kv_cache_manager.block_pool.num_gpu_blocks
    layers = [cache.movedim(cache.shape.index(total), 0)[blocks].float() for cache in runner_of(llm).kv_caches]
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    return outputs[0].num_cached_tokens, torch.stack(layers).flatten(2)
