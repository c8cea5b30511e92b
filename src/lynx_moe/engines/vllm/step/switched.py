"""What an operator switches while an engine runs: the server's policy, and the goals that it follows."""

from typing import Any

from lynx_moe.engines.shared.step.requests import Fitted
from lynx_moe.engines.shared.switching import Switch
from lynx_moe.engines.vllm.launch import goals
from lynx_moe.engines.vllm.step import cache
from lynx_moe.engines.vllm.step.deciding import Deciding
from lynx_moe.policies import Policy


class Switched(Deciding):
    """A plan that may be switched. governed: the plan that follows the server's policy, this one or its drafter's.
    drafts: whether the model drafts for another one. unable: goals that this engine cannot follow, and why."""

    drafts = False
    governed: Any

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.unable: dict[str, str] = {}

    def set_policy(self, spec: str) -> str:
        self.take(*self.check(spec))
        return self.policy.spec

    def take(self, policy: Policy, by_layer: list[Policy]) -> None:
        """The operator's policy, from the next step on."""
        self.put(policy, by_layer)
        self.tuned = None
        self.policy_changes["operator"] += 1
        self.aim(anew=True)
        if self.watch is not None:
            self.watch.restart(self.policy)
        if not self.drafts:
            cache.switched(self.policy.is_identity)

    def may_switch(self, asked: Switch) -> Fitted:
        """The server's policy as `switch` would have it. Raises ValueError where it cannot, and changes nothing:
        Recorded and Unable are those that no other value would mend."""
        governed, stays = self.governed, asked.policy is None
        found = (governed.policy, governed.by_layer) if asked.policy is None else governed.check(asked.policy)
        guard = None if self.watch is None else self.watch.options
        tuned = stays and self.tuned is not None
        goals.check(asked.goals, self.options, policy=found[0].spec, guard=guard, tuned=tuned)
        goals.refuse(asked.goals, self.unable)
        return found

    def switch(self, asked: Switch) -> str:
        """From the next step on; the full spec. Raises ValueError as `may_switch` does."""
        policy, by_layer = self.may_switch(asked)
        self.goals |= asked.goals
        if asked.policy is not None:
            self.governed.take(policy, by_layer)
        else:
            self.aim(anew=False)
        return policy.spec
