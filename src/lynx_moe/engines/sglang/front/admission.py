"""What a request may ask for, decided where SGLang queues it: a bad wish ends the request, with HTTP status 400."""

from typing import Any

from lynx_moe.engines.sglang.step.plan import SPEC, Plan, active
from lynx_moe.engines.shared.options import EXACT, KEY
from lynx_moe.engines.shared.step import wishes


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
        if wishes.VERIFY_KEY in wishes.carried(params):
            raise ValueError(f"{wishes.VERIFY_KEY}: drafts are always verified exactly here; leave it out")
        wishes.check_keys(params)
    except ValueError as error:
        return str(error).removeprefix(f"{KEY}: ")
    wish = wishes.asked(params)
    if wish is None:
        return None
    try:
        return _unfit(plan, req, wish)
    except ValueError as error:
        return f"{error}; allowed: {wishes.allowed(plan.options)}"


def _unfit(plan: Plan, req: Any, wish: Any) -> str | None:
    """Raises ValueError for a wish that is none, or does not fit the model."""
    spec = wishes.spec_of(wish, plan.options)
    if spec is None or spec == EXACT:
        return None
    policy, _ = plan.check(spec)
    if not wishes.brings(wish, policy, plan.options):
        return None
    others = {
        brought
        for other in list(plan.known.values())
        if other is not req and not other.finished() and (brought := getattr(other, SPEC, None)) is not None
        if wishes.brings(wishes.asked(other.sampling_params), plan.check(brought)[0], plan.options)
    }
    reason = wishes.too_many(wish, others - {spec}, plan.options)
    if reason is not None:
        raise ValueError(reason)
    return None
