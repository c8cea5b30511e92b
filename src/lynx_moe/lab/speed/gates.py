"""Random gates that route like a trained router in two respects at once: distinct experts by batch, shares by rank.

    logits[t, e] = std * (own[t, e] + common * all[e]) / sqrt(1 + common^2)        own, all: standard normal

Over the experts of a row these are normal with `std`, whatever `common` is: so std alone sets how a row's weight falls
from its first expert to its last, and common alone how many experts a batch shares. `fit_gates.py` fits both. On the
real router below, policies then keep what they keep on its own routes, which was not fitted (docs/routes.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# A DeepSeek-V2-Lite class router (64 experts, top-6, 26 layers) on three tasks, mixed: docs/routes.md
SHARES = (0.331, 0.196, 0.149, 0.123, 0.106, 0.095)  # of the weight of a row's six experts
DEEPSEEK_DISTINCT = {4: 19.6, 16: 45.6, 64: 61.9}
QWEN3_DISTINCT = {16: 48.8}  # Qwen3-30B-A3B, arXiv 2511.02237


@dataclass(frozen=True, kw_only=True)
class Gates:
    """std and common as above. distinct: experts by batch size that `common` was fitted to; none: it is
    DeepSeek-V2-Lite's, for want of a published figure. source: where they are from."""

    std: float
    common: float
    source: str
    distinct: Mapping[int, float] = field(default_factory=dict)

    def about(self) -> dict[str, object]:
        """What a record says of its gates: how they were drawn, and what they were matched to."""
        return {
            "std": self.std,
            "common": self.common,
            "shares_by_rank": {"from": "routes of DeepSeek-V2-Lite", "aim": list(SHARES)},
            "distinct_experts": {"from": self.source, "aim": {str(size): aim for size, aim in self.distinct.items()}},
        }


DEEPSEEK_V2_LITE = Gates(
    std=1.29, common=0.34, source="routes of DeepSeek-V2-Lite, tasks mixed", distinct=DEEPSEEK_DISTINCT
)
QWEN3_30B = Gates(std=1.41, common=0.91, source="Qwen3-30B-A3B, arXiv 2511.02237", distinct=QWEN3_DISTINCT)


def unpublished(std: float) -> Gates:
    """Of a model whose distinct experts nobody has published."""
    return Gates(std=std, common=DEEPSEEK_V2_LITE.common, source="none published; `common` is DeepSeek-V2-Lite's")
