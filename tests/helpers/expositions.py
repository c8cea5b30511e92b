"""What a server's /metrics might say."""

COMMON = 'model_name="m",engine="0",stage="0"'


def metrics(steps: float, before: float, after: float, rung: int = 0) -> str:
    """An exposition of one layer group after so many decode steps, with means before and after."""
    lines = [
        f'lynx_moe_steps_total{{{COMMON},kind="decode"}} {steps}',
        f'lynx_moe_layer_steps_total{{{COMMON},layers="00",step="decode"}} {steps}',
        f'lynx_moe_distinct_experts_before_total{{{COMMON},layers="00",step="decode"}} {before * steps}',
        f'lynx_moe_distinct_experts_after_total{{{COMMON},layers="00",step="decode"}} {after * steps}',
        f'lynx_moe_policy_info{{{COMMON},policy="{"vanilla" if rung else "lynx"}",asked="lynx"}} 1',
        f"lynx_moe_guard_enabled{{{COMMON}}} 1",
        f"lynx_moe_guard_rung{{{COMMON}}} {rung}",
        f"lynx_moe_guard_last_rung{{{COMMON}}} 2",
        f'lynx_moe_guard_bound{{{COMMON},figure="mass_lost"}} 0.1',
        f'lynx_moe_guard_figure{{{COMMON},figure="mass_lost",rung="now"}} 0.031',
        f'lynx_moe_guard_figure{{{COMMON},figure="mass_lost",rung="above"}} 0.25',
    ]
    return "\n".join(["# HELP other x", "# TYPE other gauge", "other 1", *lines]) + "\n"
