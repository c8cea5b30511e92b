"""`lynx-moe fidelity --engine vllm`: the same measurement through the engine that serves, quantised or parallel.

A batch's documents are requests that start together and say their true continuation (`forced`), once with the model's
own routing and once under each policy, each time with a KV cache of their own. So the figures are those of
`lockstep.decode` with cache "own".
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lynx_moe.engines.shared.metrics import KINDS, LayerStats, Tally
from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.lab.fidelity.lockstep import Effect
from lynx_moe.lab.shared import memory as machine
from lynx_moe.lab.shared.documents import Batch
from lynx_moe.lab.shared.engine import import_vllm, in_own_process, open_engine
from lynx_moe.lab.shared.models import unloadable

Line = dict[str, Any]
EXACT = "vanilla"
DECODE = ("decode", "single")
PROCESSOR = "lynx_moe.lab.fidelity.forced:Forced"
GIVEN = ("model", "additional_config", "async_scheduling", "enable_prefix_caching", "logits_processors")


def measure(
    settings: fidelity.Settings,
    policies: Sequence[str],
    path: Path,
    advance: Callable[[str], None] = print,
    max_gib: float | None = None,
    engine_args: Mapping[str, Any] | None = None,
) -> Line:
    """As `fidelity.measure`, in a process of its own. engine_args: for `vllm.LLM`.

    Raises ValueError also where vLLM is missing or refuses the model, and for caches other than "own".
    """
    if settings.caches != ("own",):
        raise ValueError(
            f"--caches {','.join(settings.caches)}: a request reads what it wrote; --engine vllm has own only"
        )
    import_vllm()
    return in_own_process(_measure, settings, list(policies), path, advance, max_gib, dict(engine_args or {}))


def _measure(
    settings: fidelity.Settings,
    policies: list[str],
    path: Path,
    advance: Callable[[str], None],
    max_gib: float | None,
    engine_args: dict[str, Any],
) -> Line:
    header = {"engine": "vllm", "engine_args": engine_args}
    return fidelity.measure(
        settings, policies, path, advance, max_gib, partial(Served, engine_args=engine_args), header
    )


class Served:
    """A `fidelity.Decoder` on a vLLM engine of this process, whose workers may be others."""

    def __init__(self, settings: fidelity.Settings, specs: Sequence[str], engine_args: Mapping[str, Any]) -> None:
        ours = {
            "max_num_seqs": max(settings.batch_sizes),
            "dtype": settings.dtype,
            "trust_remote_code": bool(settings.trust_remote_code),
            "enable_prefix_caching": False,
            "async_scheduling": False,  # the forced token is the last one's follower: it must be known
            "logits_processors": [PROCESSOR],
        }
        try:
            self.llm = open_engine(settings.model, EXACT, **{"enforce_eager": True, **ours, **engine_args})
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(unloadable("vLLM", settings.model, error)) from error
        from lynx_moe.engines.vllm.front.control import fits, flat
        from lynx_moe.engines.vllm.step.built import Model

        self.policies = [fits(self._ask("lynx_check_policy", spec)) for spec in specs]
        self.vocabulary = self.llm.model_config.get_vocab_size()
        self.num_experts = Model.heard(flat(self._ask("lynx_model"))).routers[0].num_experts

    def check(self, cuts: Iterable[tuple[str, Sequence[Batch]]], max_gib: float | None) -> None:
        """Raises ValueError for documents that the engine does not take, and for log-probabilities that would take more
        memory than may be used; caches are the engine's own affair."""
        limit, longest = machine.allowed(torch.device("cpu"), max_gib), self.llm.model_config.max_model_len
        for _, cut in cuts:
            width = max(len(member.prefix) + batch.num_steps + 1 for batch in cut for member in batch.members)
            if width > longest:
                raise ValueError(f"sequences of {width} tokens: the model takes {longest}; lower --prefix or --steps")
            rows = max(len(batch.members) * (batch.num_steps + 1) for batch in cut)
            need = {"log-probabilities": rows * self.vocabulary * 4}
            machine.refuse_above(limit, need, f"batch {len(cut[0].members)}", "lower --batch-sizes or --steps")

    def decode(self, batch: Batch, cache: str, tick: Callable[[], None]) -> list[Line]:
        """The figures of each policy on one batch."""
        from lynx_moe.lab.fidelity import forced

        self._run(EXACT, batch, exact=True)
        found = []
        for policy in self.policies:
            self._run(policy, batch, exact=False)
            found.append(fidelity.means(self._effect(batch)) | self._loads())
        self.llm.collective_rpc(forced.forget)
        for _ in range(batch.num_steps):
            tick()
        return found

    def _run(self, policy: str, batch: Batch, *, exact: bool) -> None:
        """The workers have the log-probabilities of the exact run, or the figures of the policy's, then."""
        from vllm import SamplingParams

        from lynx_moe.lab.fidelity.forced import FORCED

        self._ask("lynx_set_policy", policy)
        self._ask("lynx_reset_stats")
        prompts, params, length = [], [], batch.num_steps + 1
        for number, member in enumerate(batch.members):
            says = {FORCED: {"ids": list(member.rest[:length]), "document": number, "exact": exact}}
            plain = {"max_tokens": length, "ignore_eos": True, "temperature": 0, "detokenize": False}
            params.append(SamplingParams(**plain, extra_args=says))
            prompts.append({"prompt_token_ids": list(member.prefix)})
        self.llm.generate(prompts, params, use_tqdm=False)

    def _effect(self, batch: Batch) -> Effect:
        """From the worker that samples."""
        from lynx_moe.lab.fidelity import forced

        told = {token: each for worker in self.llm.collective_rpc(forced.taken) for token, each in worker.items()}
        steps = [[told[n, place + 1] for n in range(len(batch.members))] for place in range(batch.num_steps)]
        return Effect(*torch.tensor(steps).permute(2, 0, 1))

    def _loads(self) -> Line:
        """As `fidelity.loads`, of all stages' layers."""
        layers = {layer["name"]: layer for worker in self._ask("lynx_stats") for layer in worker["layers"]}
        found = [LayerStats(name=name, **{k: Tally(**layer[k]) for k in KINDS}).alike for name, layer in layers.items()]
        before, after = [one.mean_before for one in found], [one.mean_after for one in found]
        means = {"before": sum(before) / len(found), "after": sum(after) / len(found)}
        more = self._read(len(found))
        return {**means, "before_by_layer": before, "after_by_layer": after, "num_experts": self.num_experts} | more

    def _read(self, num_layers: int) -> Line:
        """Experts of a layer and decode step that were read from a disk; nothing if none lie there."""
        (worker, *_) = self._ask("lynx_stats")
        if worker["disk"] is None:
            return {}
        steps, by_kind = worker["steps"], worker["disk"]["steps"]
        count = max(sum(steps[kind] for kind in DECODE), 1)
        return {"read": sum(by_kind[kind]["loads"] for kind in DECODE if kind in by_kind) / count / num_layers}

    def _ask(self, method: str, *args: Any) -> list[Any]:
        return list(self.llm.collective_rpc(method, args=args))
