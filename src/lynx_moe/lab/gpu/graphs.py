"""CUDA graphs of several policies in one vLLM engine, so that they can be timed in turns.

A CUDA graph has recorded its policy, and vLLM captures one set of graphs as it starts. Here every policy gets its own
set from vLLM's own `capture_model`; to switch is to hand vLLM another set. For the V1 model runner.
"""

from dataclasses import replace
from typing import Any


class GraphSets:
    """`capture` a policy once, then `use` it any number of times; `counting` ones count distinct experts too."""

    def __init__(self, llm: Any) -> None:
        from vllm.compilation.cuda_graph import CUDAGraphWrapper

        self.wrappers = list(CUDAGraphWrapper._all_instances)
        self.runner = llm.collective_rpc(lambda worker: worker.model_runner)[0]
        self.sets: dict[tuple[str, bool], tuple[list[dict[Any, Any]], str]] = {}
        if not self.wrappers:
            raise RuntimeError("vLLM made no CUDA graphs: nothing to record policies in")

    def use(self, policy: str, *, counting: bool = False) -> str:
        """Switches; returns the full spec."""
        from lynx_moe.engines.vllm.plan import active

        plan, key = active(), (policy, counting)
        plan.options, plan.graphs = replace(plan.options, stats=counting), False
        full = plan.set_policy(policy)
        plan.graphs = True
        if key not in self.sets:
            for wrapper in self.wrappers:
                wrapper.concrete_cudagraph_entries = {}
            self.runner.capture_model()
            self.sets[key] = [wrapper.concrete_cudagraph_entries for wrapper in self.wrappers], full
        for wrapper, entries in zip(self.wrappers, self.sets[key][0], strict=True):
            wrapper.concrete_cudagraph_entries = entries
        return full
