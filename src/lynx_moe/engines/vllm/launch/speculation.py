"""Which ways of drafting tokens may stand beside remapping, from the sources of vLLM 0.32.

Rows that verify a draft are exact, so a draft by the request's own text needs no care. One by a model does: its MoE
layers would be built as the model's own are, and the masks of a step are of the model's rows.
"""

from typing import Any

WITHOUT_MODEL = ("ngram", "ngram_gpu", "suffix")
WHY = {
    "extract_hidden_states": "hands on each token as a draft, and rows that verify a draft are exact, so nothing would "
    "ever be remapped",
    "custom_class": "drafts by a class of yours, which may run a model with MoE layers of its own: nothing is known of "
    "it here",
}


def refusal(speculative: Any) -> str | None:
    """Why an engine with this `speculative_config` (or None) cannot remap; None: it can."""
    method = getattr(speculative, "method", None)
    if method is None or method in WITHOUT_MODEL:
        return None
    why = WHY.get(method, "drafts with a model of its own, which is not supported yet")
    return f"speculative method {method!r} {why}; use {', '.join(WITHOUT_MODEL)}, or start without speculative_config"
