"""What the user may ask for under `additional_config["lynx_moe"]`, and which engine settings exclude it.

Everything here is checked before any weight is loaded. Every error names what was given, what is allowed, what to do.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

from lynx_moe.engines.vllm.versions import SUPPORTED
from lynx_moe.policies import Policy, make_policy

KEY = "lynx_moe"
TESTED = "0.32.0"


@dataclass(frozen=True, kw_only=True)
class Options:
    """policy     spec string, such as "lynx:alpha=3,beta=2"; "vanilla" changes nothing, but counts.
    stats      count distinct experts (a few tensor operations per layer and step).
    log_every  seconds between log lines; 0: none.
    """

    policy: str
    stats: bool = True
    log_every: float = 60.0

    def __post_init__(self) -> None:
        if not isinstance(self.policy, str):
            raise ValueError(f'{KEY}: policy={self.policy!r} must be a spec string, such as "lynx:alpha=3,beta=2"')
        if not isinstance(self.stats, bool):
            raise ValueError(f"{KEY}: stats={self.stats!r} must be true or false")
        every = self.log_every
        if isinstance(every, bool) or not isinstance(every, int | float) or every < 0:
            raise ValueError(f"{KEY}: log_every={every!r} must be a number of seconds, or 0 for no log line")
        self.make_policy()

    def make_policy(self) -> Policy:
        return make_policy(self.policy)

    @classmethod
    def of(cls, vllm_config: Any) -> Self | None:
        """The options in an engine's configuration; None where it has none: then the plugin does nothing at all."""
        extra = vllm_config.additional_config
        if not isinstance(extra, dict) or KEY not in extra:
            return None
        given, allowed = extra[KEY], [f.name for f in fields(cls)]
        example = f'{{"{KEY}": {{"policy": "lynx:alpha=3,beta=2"}}}}'
        if not isinstance(given, dict):
            raise ValueError(f"{KEY}: got {given!r}, expected a dictionary; pass additional_config={example}")
        unknown = sorted(set(given) - set(allowed))
        if unknown:
            raise ValueError(f"{KEY}: unknown key {', '.join(map(repr, unknown))}; allowed: {', '.join(allowed)}")
        if "policy" not in given:
            raise ValueError(f"{KEY}: no policy is named; pass additional_config={example}")
        return cls(**given)


def check_engine(vllm_config: Any) -> None:
    """Raises ValueError where the engine's settings exclude batch-aware routing, or would feed it wrong rows."""
    import vllm
    from vllm import envs

    version = tuple(int(part) for part in vllm.__version_tuple__[:2])
    if version not in SUPPORTED:
        supported = ", ".join(".".join(map(str, one)) for one in SUPPORTED)
        raise ValueError(
            f"{KEY}: vLLM {vllm.__version__} is not supported; supported: {supported} (tested: {TESTED}). "
            f"Install one of these, or start without additional_config[{KEY!r}]"
        )
    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    refused = {
        "VLLM_BATCH_INVARIANT=1 promises outputs that do not depend on the batch, batch-aware routing makes them "
        "depend on it; unset one of the two": envs.VLLM_BATCH_INVARIANT,
        "speculative decoding is not supported yet; start without speculative_config": vllm_config.speculative_config,
        f"data_parallel_size={parallel.data_parallel_size} gathers the tokens of all ranks before routing, which is "
        "not supported yet; use 1": parallel.data_parallel_size > 1,
        f"prefill_context_parallel_size={parallel.prefill_context_parallel_size} splits tokens over ranks, which is "
        "not supported yet; use 1": parallel.prefill_context_parallel_size > 1,
        "sequence-parallel MoE splits tokens over ranks, which is not supported yet; choose another all2all_backend "
        "or tensor_parallel_size=1": parallel.use_sequence_parallel_moe,
        "microbatches (enable_dbo, ubatch_size) split the decode batch, which is not supported yet; switch them "
        "off": parallel.use_ubatching,
        "kv_sharing_fast_prefill runs layers on a part of the tokens, which is not supported yet; switch it "
        "off": cache.kv_sharing_fast_prefill,
    }
    for reason, found in refused.items():
        if found:
            raise ValueError(f"{KEY}: {reason}")
