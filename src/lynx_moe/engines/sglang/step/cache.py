"""What the radix cache may keep: KV that the model's own routing wrote.

SGLang hands what a request has computed to its radix tree by `checkpoint(req, up_to=...)`: its prompt when that is
there, and once more all it has when it finishes. Prompts are never remapped, so they are shared by everybody under
every policy. Of a request that may have been remapped the tree gets its prompt and nothing more. Whoever brings the
generated tokens as a prompt computes them anew, in bulk and exactly, and that is kept.
"""

from typing import Any

from lynx_moe.engines.sglang.step.plan import active
from lynx_moe.engines.shared.options import KEY


def checkpoint(tree: Any, req: Any, *, up_to: int, **given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before UnifiedRadixCache.checkpoint: its arguments, with no more tokens than may be shared."""
    plan = active()
    if plan is not None and plan.may_remap(req):
        up_to = min(up_to, len(req.origin_input_ids))
    return (tree, req), {"up_to": up_to, **given}


def refusal(tree: Any) -> str | None:
    """Why this tree would not keep to the rule; None: it does, or shares nothing."""
    if tree.disable:
        return None
    kind = type(tree).__name__
    what = "no radix cache but UnifiedRadixCache" if kind != "UnifiedRadixCache" else None
    if what is None and (tree.supports_mamba() or tree.supports_swa()):
        what = "models with a recurrent state or a sliding window: parts of their KV are kept in another way"
    if what is None:
        return None
    return f"{KEY}: whose KV is shared was never tried with {what} (found: {kind}); start with --disable-radix-cache"
