"""What a request may ask for, decided where SGLang queues it: a bad wish ends the request, with HTTP status 400."""

from typing import Any

from lynx_moe.engines.sglang.step.plan import SPEC, Plan, active
from lynx_moe.engines.shared.options import EXACT, KEY
from lynx_moe.engines.shared.step import wishes

BROUGHT = "lynx_moe_brought"  # attribute of SGLang's Req: the spec that it brings of its own


def arrive(scheduler: Any, req: Any, *_: Any, **__: Any) -> None:
    """Before Scheduler._add_request_to_queue, for new requests and retracted ones."""
    plan = active()
    if plan is None:
        return
    is_new = not hasattr(req, SPEC)
    plan.arrive(req)
    reason = refusal(plan, req) if is_new and req.to_finish is None else None
    if reason is not None:
        req.set_finish_with_abort(f"{KEY}: {reason}")


def refusal(plan: Plan, req: Any) -> str | None:
    """Why a request may not have what it asks for; None: it may, or asks nothing."""
    params = req.sampling_params
    try:
        wishes.check_keys(params)
    except ValueError as error:
        return str(error).removeprefix(f"{KEY}: ")
    wish = wishes.asked(params)
    if wish is None:
        return None
    try:
        _admit(plan, req, wish)
    except ValueError as error:
        return f"{error}; allowed: {wishes.allowed(plan.options)}"
    return None


def _admit(plan: Plan, req: Any, wish: Any) -> None:
    """Raises ValueError for a wish that is none, does not fit the model, or brings one policy too many."""
    spec = wishes.spec_of(wish, plan.options)
    if spec is None or spec == EXACT:
        return
    policy, _ = plan.check(spec)
    if not wishes.brings(wish, policy, plan.options):
        return
    others = {getattr(other, BROUGHT, spec) for other in plan.known.values() if not other.finished()} - {spec}
    reason = wishes.too_many(wish, others, plan.options)
    if reason is not None:
        raise ValueError(reason)
    setattr(req, BROUGHT, spec)
