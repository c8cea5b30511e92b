"""CUDA graphs of several policies in one vLLM engine, so that they can be timed in turns.

A CUDA graph has recorded its policy, and vLLM captures one set of graphs as it starts. Here every policy gets its own
set from vLLM's own `capture_model`; to switch is to hand vLLM another set. By the sources of vLLM 0.26, the V1 model
runner keeps its graphs in wrappers of the model and of its pieces, and the V2 runner keeps full graphs in a manager.
"""

from dataclasses import replace
from typing import Any


class GraphSets:
    """`use` a policy any number of times: it is captured at the first; `counting` ones count distinct experts too."""

    def __init__(self, llm: Any) -> None:
        from vllm.compilation.cuda_graph import CUDAGraphWrapper

        self.runner = llm.collective_rpc(lambda worker: worker.model_runner)[0]
        self.holders = [(wrapper, "concrete_cudagraph_entries") for wrapper in CUDAGraphWrapper._all_instances]
        manager = getattr(self.runner, "cudagraph_manager", None)
        if hasattr(manager, "graphs"):
            self.holders.append((manager, "graphs"))
        self.sets: dict[tuple[str, bool], tuple[list[dict[Any, Any]], str]] = {}
        if not any(getattr(*holder) for holder in self.holders):
            raise RuntimeError("vLLM made no CUDA graphs: nothing to record policies in")

    def use(self, policy: str, *, counting: bool = False) -> str:
        """Switches; returns the full spec."""
        from lynx_moe.engines.vllm.step.plan import active

        plan, key = active(), (policy, counting)
        plan.options, plan.graphs = replace(plan.options, stats=counting), False
        try:
            full = plan.set_policy(policy)
        finally:
            plan.graphs = True
        if key not in self.sets:
            self._hand([{} for _ in self.holders])
            plan.rows.idle()  # what graphs record in idle runs, they decide in every step
            plan.requests.step = []
            plan.begin_step()
            self.runner.capture_model()
            self.sets[key] = [getattr(*holder) for holder in self.holders], full
        self._hand(self.sets[key][0])
        return full

    def _hand(self, graphs: list[dict[Any, Any]]) -> None:
        for (owner, name), entries in zip(self.holders, graphs, strict=True):
            setattr(owner, name, entries)
