"""Random routing steps for the policies' tests: logits of every awkward kind, routers, row masks, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import torch
from torch import Tensor

from lynx_moe.routing import RouterSpec, Rows

TOP_K = {4: 2, 12: 3, 60: 4, 64: 8, 128: 8, 256: 8}
SIZES_T = (1, 2, 7, 64, 257)
SIZES_E = (4, 60, 64, 128, 256)
KINDS = ("normal", "flat", "ties", "equal", "extreme", "minus_inf", "nan", "bfloat16")
SCHEMES = (
    *("softmax", "softmax_raw", "softmax_scaled", "sigmoid_bias", "grouped", "grouped_bias"),
    *("sqrtsoftplus_bias", "sigmoid", "sparsemixer_raw"),
)
BY_SCORES = tuple(scheme for scheme in SCHEMES if scheme != "sparsemixer_raw")  # weights are shares of scores


@dataclass
class Case:
    logits: Tensor
    spec: RouterSpec
    rows: Rows

    @property
    def valid(self) -> Tensor:
        return torch.ones(len(self.logits), dtype=torch.bool) if self.rows.valid is None else self.rows.valid

    @property
    def voters(self) -> Tensor:
        finite = self.logits.float().amax(-1).isfinite()
        return finite & self.valid & (self.valid if self.rows.remap is None else self.rows.remap)


def make_logits(kind: str, num_rows: int, num_experts: int, rng: torch.Generator) -> Tensor:
    logits = torch.randn(num_rows, num_experts, generator=rng) * 2
    some = torch.rand(num_rows, num_experts, generator=rng) < 0.5
    if kind == "flat":
        return logits * 0.01
    if kind == "ties":
        return logits.round()
    if kind == "equal":
        return torch.zeros_like(logits)
    if kind == "extreme":
        return logits * 1e30
    if kind == "minus_inf":
        return logits.masked_fill(some, -torch.inf)
    if kind == "nan":
        return logits.masked_fill(some & (torch.rand(num_rows, 1, generator=rng) < 0.3), torch.nan)
    return logits.bfloat16() if kind == "bfloat16" else logits


def make_spec(scheme: str, num_experts: int, rng: torch.Generator) -> RouterSpec:
    scoring = scheme.partition("_")[0].replace("grouped", "sigmoid" if scheme.endswith("bias") else "softmax")
    return RouterSpec(
        num_experts=num_experts,
        top_k=TOP_K[num_experts],
        scoring=scoring,
        renormalize=scheme not in ("softmax_raw", "grouped", "sparsemixer_raw"),
        scale=2.5 if "bias" in scheme else 1.0,
        bias=torch.randn(num_experts, generator=rng) * 0.1 if "bias" in scheme else None,
        groups=(2, 1) if "grouped" in scheme else None,
        jitter=0.1,
        expert_scale=torch.rand(num_experts, generator=rng) if "scaled" in scheme else None,
    )


def make_calibration(num_experts: int, seed: int = 0) -> dict[str, Tensor]:
    """One layer's tensors with ties, negative scalars and pairs that were never seen."""
    rng = torch.Generator().manual_seed(seed)
    square = (num_experts, num_experts)
    loss = torch.rand(square, generator=rng).mul(8).round().div(8)
    loss = loss.masked_fill(torch.rand(square, generator=rng) < 0.3, torch.inf).fill_diagonal_(0.0)
    return {
        "gate_norm": torch.rand(num_experts, generator=rng).mul(16).round(),
        "output_norm": torch.rand(num_experts, generator=rng).mul(4).round() + 1,
        "similarity": torch.rand(square, generator=rng).mul(8).round().div(8).fill_diagonal_(1.0),
        "fold_scale": torch.randn(square, generator=rng).where(loss.isfinite(), 0.0),
        "fold_loss": loss,
    }


@st.composite
def cases(
    draw: st.DrawFn,
    sizes_T: Sequence[int] = SIZES_T,
    sizes_E: Sequence[int] = SIZES_E,
    schemes: Sequence[str] = SCHEMES,
) -> Case:
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    num_rows, num_experts = draw(st.sampled_from(sizes_T)), draw(st.sampled_from(sizes_E))
    logits = make_logits(draw(st.sampled_from(KINDS)), num_rows, num_experts, rng)
    spec = make_spec(draw(st.sampled_from(schemes)), num_experts, rng)

    def mask(share: float) -> Tensor | None:
        return None if draw(st.booleans()) else torch.rand(num_rows, generator=rng) < share

    rows = Rows(valid=mask(0.8), remap=mask(0.7))
    rows = rows if draw(st.booleans()) else drafted(rows, num_rows, rng)
    return Case(logits, spec, rows if draw(st.booleans()) else replace(rows, load_cost_E=make_costs(num_experts, rng)))


def make_costs(num_experts: int, rng: torch.Generator) -> Tensor:
    """What loads cost: of about half of the experts as much as a full one, and of the others any part of it."""
    cost_E = torch.rand(num_experts, generator=rng).clamp(min=0.01)
    return cost_E.where(torch.rand(num_experts, generator=rng) < 0.5, 1.0)


def drafted(rows: Rows, num_rows: int, rng: torch.Generator) -> Rows:
    """The same rows, which verify drafts of up to three tokens; some requests have none. The chances are any falling
    ones."""
    sizes = torch.randint(1, 5, (num_rows,), generator=rng)
    request_T = torch.arange(num_rows).repeat_interleave(sizes)[:num_rows]
    depth_T = torch.arange(num_rows) - torch.searchsorted(request_T, request_T)
    chances = torch.cat((torch.ones(1), torch.rand(3, generator=rng))).cumprod(0)
    return replace(rows, request=request_T, depth=depth_T, chance=chances[depth_T])
