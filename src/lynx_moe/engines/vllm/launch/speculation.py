"""Which ways of drafting tokens may stand beside remapping, from the sources of vLLM 0.32.

A drafter that is a model is built in the same process as the one that verifies (the target) and run between its steps.
Its MoE layers have a plan of their own (`step/drafter.py`), so what matters here is only whether it is told by vLLM's
configuration that a model drafts, and which of a step's rows verify drafts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lynx_moe.engines.shared import config

WITHOUT_MODEL = ("ngram", "ngram_gpu", "suffix")
METHODS = (*WITHOUT_MODEL, "draft_model", "mtp", "eagle", "eagle3")
ALIKE = 0.9  # share of tokens: releases of one family rename a few
TRIED = "it was never run beside remapping, and no test knows its rows"
WHY = {
    "extract_hidden_states": "hands on each token as a draft, and rows that verify a draft are exact, so nothing would "
    "ever be remapped",
    "custom_class": "drafts by a class of yours, which may run a model with MoE layers of its own: nothing is known of "
    "it here",
    "medusa": f"drafts with heads of its own: {TRIED}",
    "dflash": f"drafts a block at once: {TRIED}",
    "dspark": f"drafts a block at once and may size what is verified: {TRIED}",
    "mlp_speculator": "has no proposer in vLLM's V1 engine, which would end with 'Unknown speculative decoding method'",
}


def refusal(speculative: Any, verify: str) -> str | None:
    """Why an engine with this `speculative_config` (or None) cannot remap, or not as `verify` says (`Options.verify`);
    None: it can."""
    method = getattr(speculative, "method", None)
    if method is None:
        if verify == "exact":
            return None
        return f"verify={verify!r} is about drafts, and this engine makes none; add speculative_config, or leave it out"
    if method not in METHODS:
        why = WHY.get(method, f"is not known here: {TRIED}")
        return f"speculative method {method!r} {why}; use {', '.join(METHODS)}, or start without speculative_config"
    if verify == "draft" and method in WITHOUT_MODEL:
        return f"verify='draft' remaps the model that drafts, and {method!r} drafts without one; use 'exact' or 'remap'"
    return None


def is_drafter(model_config: Any) -> bool:
    """Whether vLLM builds this model to draft for another one."""
    return getattr(model_config, "runner_type", None) == "draft"


def check_vocabulary(target: Any, speculative: Any) -> None:
    """Raises ValueError if a draft model named in `speculative` (a dictionary as vLLM takes it, or None) has another
    vocabulary than the model `target`, as far as their folders tell; what lies elsewhere is vLLM's to find."""
    if not isinstance(speculative, Mapping) or speculative.get("use_heterogeneous_vocab"):
        return
    drafter = speculative.get("model")
    if (speculative.get("method") or "draft_model") != "draft_model" or not isinstance(drafter, str):
        return
    folders = [config.folder_of(str(model)) for model in (target, drafter)]
    ours, theirs = (_vocabulary(folder) for folder in folders)
    if ours is None or theirs is None:
        return
    same = sum(theirs.get(token) == number for token, number in ours.items())
    if same < ALIKE * max(len(ours), len(theirs)):
        raise ValueError(
            f"{drafter} cannot draft for {target}: of {len(ours)} tokens {same} have the same number in its vocabulary "
            f'of {len(theirs)}; use a drafter with the same tokenizer, or "use_heterogeneous_vocab": true'
        )


def _vocabulary(folder: Path | None) -> dict[str, int] | None:
    """Token -> its number, by the folder's tokenizer.json; None where there is none."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    try:
        vocabulary = json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if isinstance(vocabulary, Mapping):
        return dict(vocabulary)
    return {token: number for number, (token, *_) in enumerate(vocabulary)}  # with scores, in order (unigram)
