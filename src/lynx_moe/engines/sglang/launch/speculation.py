"""Which of SGLang's ways of drafting may stand beside a policy, from the sources of SGLang 0.5.23.

A model that drafts has a model runner of its own (`is_draft_worker`), and its routers are none of the plan's: its
passes are no steps, and its layers keep their routing. What matters here is only whether a step of the served model
tells which of its rows verify drafts.
"""

from typing import Any

from lynx_moe.engines.shared.options import EXACT

WITHOUT_MODEL = ("NGRAM",)
ALGORITHMS = (*WITHOUT_MODEL, "EAGLE", "EAGLE3", "NEXTN", "STANDALONE")  # NEXTN: another name of EAGLE
TRIED = "was never tried beside a policy"
WHY = {
    "UNO": "drafts with the served model itself, whose passes cannot be told from steps then",
    "DSPARK": "may verify another number of tokens for each request, and only a GPU's graphs tell how many",
    "DFLASH": f"drafts a block at once, on GPUs only, and {TRIED}",
    "FROZEN_KV_MTP": f"drafts on the KV that the served model has written, and {TRIED}",
}


def refusal(args: Any, verify: str) -> str | None:
    """Why SGLang's ServerArgs cannot draft beside a policy, or not as `verify` says (`Serving.verify`); None: they can,
    or draft nothing."""
    algorithm = args.speculative_algorithm
    if algorithm is None:
        if verify == EXACT:
            return None
        return (
            f"verify={verify!r} is about drafts, and this server makes none; add --speculative-algorithm, or leave it "
            "out"
        )
    if algorithm.upper() in ALGORITHMS:
        return None
    why = WHY.get(algorithm.upper(), f"is not SGLang's own, and {TRIED}")
    return f"--speculative-algorithm {algorithm} {why}; use {', '.join(ALGORITHMS)}, or leave it out"
