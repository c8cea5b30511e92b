"""Settings that authors published for named models."""

from lynx_moe.policies.contract.policy import ModelShape

# (model type, layers, experts, top-k) -> (alpha, beta), as used by the authors of Lynx (arXiv 2411.08982, v3).
ALPHA_BETA = {
    ("mixtral", 32, 8, 2): (0.7, 1),  # Mixtral-8x7B
    ("mixtral", 56, 8, 2): (1.0, 1),  # Mixtral-8x22B
    ("qwen2_moe", 28, 64, 8): (3.0, 4),  # Qwen2-57B-A14B
    ("qwen3_moe", 48, 128, 8): (3.0, 2),  # Qwen3-30B-A3B
    ("qwen3_moe", 94, 128, 8): (3.0, 2),  # Qwen3-235B-A22B Instruct
    ("deepseek_v2", 60, 160, 6): (1.125, 2),  # DeepSeek-Coder-V2
    ("gpt_oss", 36, 128, 4): (3.0, 2),  # gpt-oss-120b
}
QWEN3_235B_THINKING = (1.0, 2)  # the same shape as Instruct; only the name tells


def alpha_beta(model: ModelShape) -> tuple[float, int] | None:
    """The authors' alpha and beta for a model, or None."""
    if model.model_type == "qwen3_moe" and model.num_layers == 94 and "thinking" in model.name.lower():
        return QWEN3_235B_THINKING
    return ALPHA_BETA.get((model.model_type, model.num_layers, model.num_experts, model.top_k))
