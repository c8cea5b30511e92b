"""How the experts of a changed row are weighed: the knob `norm`, apart from the choice of experts.

    w[e] = total * p[e] / mass        p: the router's scores, without selection bias

total is what the row's own weights sum to (the routed scaling factor, where the router renormalises), and mass:

    norm=model   sum of p over the row's new experts: what they got is blown up to the whole
    norm=mass    sum of p over the row's own top-k: weaker experts add less, so the output shrinks instead
    norm=k2=N    sum of p over the row's first N experts (the k1/k2 split, arXiv 2609.04575: run k1, normalise by k2);
                 for N = top_k it is `mass`

A factor per expert (`expert_scale`) multiplies all of these last. `model` is the rule of `routing.weigh`, and so leaves
raw the scores of routers that judge each expert alone and do not renormalise. A sparsemixer's weights are no shares of
its scores: there mass and k2 share out the row's total by softmax. Rows whose experts all stay keep the model's own
weights bit for bit, whatever the norm.

Policies that drop slots (`forms.Dropping`, `priced`) know one more, of the row's own weights alone:

    norm=own=G   own weight * (the row's total / what is left of it) ** G: 0 (norm=own) leaves weights as they are, 1
                 makes up for all that went. In between: outputs of experts are nearly orthogonal, so a larger weight
                 stands for a lost expert in part only

Policies that move a choice from one expert to another (`forms.Merging`) keep the row's own weight of the choice:
norm=own as it is, norm=fold times a calibrated scalar.
"""

from torch import Tensor

from lynx_moe.policies.contract.step import Step
from lynx_moe.routing import RouterSpec, scores, weigh

BY_RULE = ("model", "mass", "k2")
OF_SLOTS = (*BY_RULE, "own=G")


def check_norm(name: str, norm: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError unless norm is one of `allowed`, k2 with a number of experts."""
    word, _, number = norm.partition("=")
    if word == "k2" and "k2" in allowed:
        if not (number.isdecimal() and int(number) > 0):
            raise ValueError(f"{name}: norm={norm} needs a number of experts, at least 1: write norm=k2=8")
    elif word == "own" and "own=G" in allowed:
        if not 0 <= own_power(norm) <= 1:
            raise ValueError(f"{name}: norm={norm} needs a number from 0 to 1: write norm=own=0.3, or norm=own for 0")
    elif norm not in allowed:
        words = ", ".join("k2=N" if each == "k2" else each for each in allowed)
        raise ValueError(f"{name}: norm={norm} is unknown; allowed: {words}")


def check_norm_fits(name: str, norm: str, spec: RouterSpec) -> None:
    """Raises ValueError if k2=N wants more experts than a row of this router can choose from."""
    n_group, topk_group = spec.groups or (1, 1)
    most = spec.num_experts // n_group * topk_group
    if norm.startswith("k2=") and _wide(norm) > most:
        raise ValueError(f"{name}: norm={norm}: a row of this router can choose from {most} experts; use at most that")


def by_norm(
    norm: str, step: Step, ids_TK: Tensor, live_TK: Tensor | None = None, mass_T1: Tensor | None = None
) -> Tensor:
    """float32 [T, K]: the weights of given ids by one of `BY_RULE`; slots that are not live weigh 0. Or by `own=G`, of
    the row's own ids.

    mass_T1: for norm=model, what a row's weights shall sum to where the router does not renormalise a softmax.
    """
    if norm == "model":
        # The NaN: of a row's live experts none has a logit above -inf, so the row gets nothing from them.
        return weigh(step.logits_TE, ids_TK, step.spec, mass_T1, live_TK).nan_to_num(0.0)
    if norm.startswith("own"):
        assert live_TK is not None
        left_TK = step.own.weights.double().where(live_TK, 0.0)
        whole_T1, left_T1 = (w.sum(-1, keepdim=True).clamp(min=1e-20) for w in (step.own.weights.double(), left_TK))
        return (left_TK * (whole_T1 / left_T1) ** own_power(norm)).float()
    score_TE = scores(step.logits_TE, step.spec)
    reference = step.own.ids if norm == "mass" else step.best(_wide(norm))
    mass_T1 = score_TE.gather(-1, reference).sum(-1, keepdim=True).clamp(min=1e-20)
    spec = step.spec
    if spec.expert_scale is None:
        total = spec.scale if spec.renormalize else step.own_mass()
    else:  # the row's own weights hold each expert's factor already
        total = spec.scale * (1 if spec.renormalize else score_TE.gather(-1, step.own.ids).sum(-1, keepdim=True))
        total = total * spec.expert_scale.float()[ids_TK]
    share_TK = score_TE.gather(-1, ids_TK) / mass_T1 * total
    return share_TK if live_TK is None else share_TK.where(live_TK, 0.0)


def own_power(norm: str) -> float:
    """G of `own=G`; NaN if that is no number."""
    try:
        return float(norm.partition("=")[2] or 0)
    except ValueError:
        return float("nan")


def _wide(norm: str) -> int:
    return int(norm.removeprefix("k2="))
