"""Models that draft for a testbed model: heads of random weights, and the target's own layers as an MTP layer."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

HEAD = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1, "intermediate_size": 64}
SHARED = (
    *("vocab_size", "hidden_size", "head_dim", "num_attention_heads", "num_key_value_heads", "rms_norm_eps"),
    *("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "hidden_act"),
)


def _read(model: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((Path(model) / "config.json").read_text()), load_file(Path(model) / "model.safetensors")


def _write(folder: Path, model: str, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (Path(model) / name).is_file():
            (folder / name).write_bytes((Path(model) / name).read_bytes())
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return str(folder)


def with_mtp(model: str, folder: Path) -> str:
    """A DeepSeek-V3, a GLM-4 or a Qwen3-Next with one MTP layer, which is its own last layer behind a projection that
    adds the next token to the hidden state."""
    config, tensors = _read(model)
    if config["model_type"] == "qwen3_next":
        return _write(folder, model, config, {**tensors, **_qwen3_next_mtp(config, tensors)})
    last, size = config["num_hidden_layers"] - 1, config["hidden_size"]
    mine, more = f"model.layers.{last + 1}.", {}
    for name, tensor in tensors.items():
        if name.startswith(f"model.layers.{last}."):
            more[name.replace(f"model.layers.{last}.", mine)] = tensor.clone()
    ones, identity = torch.ones(size, dtype=torch.bfloat16), torch.eye(size, dtype=torch.bfloat16)
    more[mine + "embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    more[mine + "enorm.weight"] = more[mine + "hnorm.weight"] = ones
    more[mine + "eh_proj.weight"] = torch.cat((identity, identity), 1)
    more[mine + "shared_head.norm.weight"] = tensors["model.norm.weight"].clone()
    more[mine + "shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    more = {name: tensor.clone() for name, tensor in more.items()}
    return _write(folder, model, {**config, "num_nextn_predict_layers": 1}, {**tensors, **more})


def _qwen3_next_mtp(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    size, last = config["hidden_size"], f"model.layers.{config['num_hidden_layers'] - 1}."
    found = {name.replace(last, "mtp.layers.0."): each for name, each in tensors.items() if name.startswith(last)}
    identity, zeros = torch.eye(size, dtype=torch.bfloat16), torch.zeros(size, dtype=torch.bfloat16)
    norms = ("pre_fc_norm_hidden", "pre_fc_norm_embedding")  # 1 is added to their weights
    found |= {"mtp.fc.weight": torch.cat((identity, identity), 1), "mtp.norm.weight": tensors["model.norm.weight"]}
    return {name: each.clone() for name, each in (found | {f"mtp.{norm}.weight": zeros for norm in norms}).items()}


def eagle_head(model: str, folder: Path, *, kind: str = "eagle") -> str:
    """A dense head of random weights for the model: `eagle`, or `eagle3` with its hidden states of three layers."""
    config, tensors = _read(model)
    made = {**{name: config[name] for name in SHARED if name in config}, **HEAD}
    size, wide = config["hidden_size"], 1 if kind == "eagle" else 2
    heads, kv = config["num_attention_heads"] * config["head_dim"], config["num_key_value_heads"] * config["head_dim"]
    layer = "layers.0." if kind == "eagle" else "midlayer."
    shapes = {
        "fc": (size, 2 * size if kind == "eagle" else 3 * size),
        f"{layer}self_attn.q_proj": (heads, wide * size),
        f"{layer}self_attn.k_proj": (kv, wide * size),
        f"{layer}self_attn.v_proj": (kv, wide * size),
        f"{layer}self_attn.o_proj": (size, heads),
        f"{layer}mlp.gate_proj": (64, size),
        f"{layer}mlp.up_proj": (64, size),
        f"{layer}mlp.down_proj": (size, 64),
    }
    rng = torch.Generator().manual_seed(3)
    found = {f"{name}.weight": torch.randn(shape, generator=rng) * shape[1] ** -0.5 for name, shape in shapes.items()}
    norms = [f"{layer}post_attention_layernorm"]
    if kind == "eagle3":
        made["architectures"] = ["LlamaForCausalLMEagle3"]
        made["eagle_aux_hidden_state_layer_ids"] = [1, 2, 3]  # by default two of the three are one in so few layers
        norms += [f"{layer}hidden_norm", f"{layer}input_layernorm", "norm"]
        found["lm_head.weight"] = tensors["lm_head.weight"].float()
    found |= {f"{name}.weight": torch.ones(size) for name in norms}
    found["embed_tokens.weight"] = tensors["model.embed_tokens.weight"].float()
    return _write(folder, model, made, {name: tensor.bfloat16() for name, tensor in found.items()})
