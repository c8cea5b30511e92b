"""The policy of a running engine and its goals: told, and switched at a step boundary on every worker or on none.

Workers are asked by `collective_rpc`, which vLLM runs between steps: first all of them whether the policy fits, then,
if it does everywhere, to switch.
"""

from collections.abc import Iterator
from typing import Any

COUNTED = ("prices", "tuned")  # what a worker has met in its own steps: data-parallel ranks have others
CONFLICT = 409
BAD = 400


class Refused(ValueError):
    """Nothing was changed. `status` is the HTTP status: 400 for the spec, 409 for an engine that cannot switch."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


def switch(llm: Any, spec: str | None = None, **goals: float | None) -> str:
    """Switches the engine of a `vllm.LLM` (in whatever process it runs) and returns the full spec string. spec None:
    the policy stays. goals: max_kl in nats and slo_tpot_ms in milliseconds, None to turn one off; those that are not
    named stay. Raises Refused."""
    full = fits(llm.collective_rpc("lynx_check_policy", args=(spec, goals)))
    llm.collective_rpc("lynx_set_policy", args=(spec, goals))
    return full


async def switch_async(client: Any, spec: str | None = None, **goals: float | None) -> str:
    """The same for an `AsyncLLM` or any other engine client."""
    full = fits(await client.collective_rpc("lynx_check_policy", args=(spec, goals)))
    await client.collective_rpc("lynx_set_policy", args=(spec, goals))
    return full


def fits(answers: list[dict[str, Any]]) -> str:
    """The full spec string that all workers would switch to. Raises Refused."""
    for answer in flat(answers):
        if "error" in answer:
            raise Refused(answer["error"], answer["status"])
    return next(str(answer["policy"]) for answer in flat(answers))


def told(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """What the workers say of themselves, as one answer: the first worker's, and whether the others say the same, but
    for what each has COUNTED."""
    found = list(flat(answers))
    same = [{name: value for name, value in answer.items() if name not in COUNTED} for answer in found]
    return {**found[0], "workers": len(found), "agree": all(each == same[0] for each in same)}


def flat(answers: Any) -> Iterator[dict[str, Any]]:
    """One dictionary per worker; several engines (data parallel) answer with a list each."""
    for answer in answers:
        if isinstance(answer, dict):
            yield answer
        else:
            yield from flat(answer)
