"""SGLang's own arguments that exclude batch-aware routing, or under which it was never tried: refused before any weight
is loaded. Every reason names what was given and what to do."""

from typing import Any

from lynx_moe.engines.sglang.launch import speculation
from lynx_moe.engines.shared.options import EXACT, KEY

ONLY_ONE = {  # argument -> what it does
    "dp_size": "splits requests over schedulers",
    "pp_size": "splits layers over processes",
    "attn_dp_size": "gathers the tokens of several ranks before routing",
    "attn_cp_size": "splits tokens over ranks",
    "moe_dp_size": "splits tokens over ranks",
    "dwdp_size": "splits tokens over ranks",
}
OFF = {  # argument -> why it must be off
    "enable_dp_attention": "it gathers the tokens of several ranks before routing",
    "enable_two_batch_overlap": "it splits the decode batch",
    "enable_single_batch_overlap": "it was never tried beside a policy",
    "enable_pdmux": "it was never tried beside a policy",
    "enable_torch_compile": "its graphs would leave the policy out",
    "enable_deterministic_inference": "it promises outputs that do not depend on the batch, and a policy makes them",
    "enable_layernorm_sp": "it splits tokens over ranks",
    "enable_streaming_session": "its sessions keep KV past the radix cache's rule",
    "enable_session_radix_cache": "its sessions keep KV past the radix cache's rule",
    "enable_hierarchical_cache": "whose KV it hands on was never tried",
    "enable_lmcache": "whose KV it hands on was never tried",
    "enable_flexkv": "whose KV it hands on was never tried",
    "enable_unified_cache_external_linker": "whose KV it hands on was never tried",
    "enable_waterfill": "it moves shared experts between ranks after routing",
    "enable_amd_monokernel": "it routes by itself",
    "enable_nvidia_megakernel": "it routes by itself",
    "kt_weight_path": "its kernels were never tried",
    "dllm_algorithm": "a diffusion model has no decode rows",
}
DEVICES = ("cpu", "cuda")
BYPASSING = ("flashinfer_trtllm", "flashinfer_mxfp4", "triton_kernel", "triton_kernels")  # they route by themselves


def refusal(args: Any, verify: str = EXACT) -> str | None:
    """Why SGLang's ServerArgs, as it has resolved them, cannot serve with a policy, or not verify drafts so
    (`Serving.verify`); None: they can."""
    reasons = [
        f"--{name.replace('_', '-')} {size} {what}, which is not supported yet; use 1"
        for name, what in ONLY_ONE.items()
        if (size := getattr(args, name, None) or 1) > 1
    ]
    reasons += [
        f"--{name.replace('_', '-')}: {why}; leave it out" for name, why in OFF.items() if getattr(args, name, None)
    ]
    if args.device not in DEVICES:
        reasons.append(f"device {args.device} chooses experts in kernels of its own; allowed: {', '.join(DEVICES)}")
    if args.moe_runner_backend in BYPASSING:
        reasons.append(f"--moe-runner-backend {args.moe_runner_backend} routes by itself; use triton")
    if args.disaggregation_mode != "null":
        reasons.append(f"--disaggregation-mode {args.disaggregation_mode} hands on KV, never tried here; leave it out")
    drafting = speculation.refusal(args, verify)
    if drafting is not None:
        reasons.append(drafting)
    if args.radix_cache_backend:
        reasons.append(f"--radix-cache-backend {args.radix_cache_backend} was never tried; leave it out")
    return f"{KEY}: {reasons[0]}" if reasons else None
