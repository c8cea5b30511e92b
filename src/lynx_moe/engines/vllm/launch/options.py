"""What the user may ask for under `additional_config["lynx_moe"]`, and which engine settings exclude it.

Everything here is checked before any weight is loaded. Every error names what was given, what is allowed, what to do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from lynx_moe.control.options import GuardOptions, is_number
from lynx_moe.control.tuned import Tuned
from lynx_moe.engines.disk.amount import Amount
from lynx_moe.engines.shared.options import DRAFT, EXACT, EXAMPLE, KEY, REMAP, VANILLA, Serving
from lynx_moe.engines.vllm.launch import acting, connectors, disk, ranks, speculation, tuned, twice
from lynx_moe.engines.vllm.launch.versions import SUPPORTED
from lynx_moe.policies import Policy, make_policy

TESTED = "0.30.0 to 0.32.0"
SMALLEST, LARGEST = 1e-5, 1.0  # nats: KL of less is rounding, and of more another model
BLIND, AWARE = "blind", "aware"  # whether decisions know which experts are in memory
VERIFY = (EXACT, REMAP, DRAFT)  # how drafts are verified: `Options.verify`


@dataclass(frozen=True, kw_only=True)
class Options(Serving):
    """What any engine may be asked (`Serving`), and:

    guard      the quality guard's options (`control/options.py`), a dictionary in JSON; None: no guard.
    verify     "draft" too: the policy acts on the MoE layers of the model that drafts, and on no others.
    shadow     share of the steps that the model runs twice, to measure the KL (`step/shadows/`); 0: none; None: as
               `launch/twice.py` says.
    max_kl     nats: the price of each step follows the KL that shadow steps measure (`control/bound.py`); None: it is
               the policy's. Their share then is the bound's too.
    back_off_kl  nats: the price begins with the policy's, and falls where shadow steps measure more; None: it stays. It
               stays too where an engine has no shadow steps. A policy that the server is switched to stays as named.
    slo_tpot_ms  rows ask the share of their prices that such steps need (`control/latency.py`); None: the whole.
    tuned      what acts at which batch size (`control/tuned.py`): a file, or what it holds, in place of a policy.
    experts_resident  how many experts stay in memory (`engines/disk/amount.py`), the others on a disk; None: all do.
    experts_folder    where their files lie; None: in the user's cache.
    experts_residency "aware": decisions know which experts are in memory; "blind": they do not.
    act_from, act_to  rows that may be remapped: steps of fewer, or of more, are exact. act_to=0: all steps are.
    """

    ways: ClassVar[tuple[str, ...]] = VERIFY
    guard: GuardOptions | None = None
    shadow: float | None = None
    max_kl: float | None = None
    back_off_kl: float | None = None
    slo_tpot_ms: float | None = None
    tuned: Tuned | None = None
    experts_resident: int | str | None = None
    experts_folder: str | None = None
    experts_residency: str = BLIND
    act_from: int = 1
    act_to: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.verify == DRAFT and self.guard is not None:
            raise ValueError(f"{KEY}: a guard watches the layers that verify={DRAFT!r} leaves alone; leave out either")
        if self.shadow is not None and not (is_number(self.shadow) and 0 <= self.shadow <= 1):
            raise ValueError(f"{KEY}: shadow={self.shadow!r} must be a share of the steps from 0 to 1, such as 0.01")
        self._check_kl("max_kl", self.max_kl)
        self._check_kl("back_off_kl", self.back_off_kl)
        self._check_slo()
        self._check_tuned()
        if self.guard is not None and self.guard.max_kl is not None and self.shadow == 0:
            raise ValueError(f"{KEY}: guard: max_kl is measured in shadow steps, and shadow=0; leave out either")
        self.make_policy()
        self.check_presets()
        self._check_experts()
        acting.check(self.act_from, self.act_to)

    @property
    def twice(self) -> str:
        """What asks for shadow steps by name; empty: nothing."""
        if self.max_kl is not None or (self.guard is not None and self.guard.max_kl is not None):
            return "max_kl"
        return f"shadow={self.shadow:g}" if self.shadow else ""

    def acts_at(self, rows: int) -> bool:
        """Whether a policy may act in a step of so many rows that may be remapped. Where none may, the least size
        counts, so that `act_from=1` leaves nothing out."""
        size = max(rows, 1)
        return self.act_from <= size and (self.act_to is None or size <= self.act_to)

    @property
    def for_target(self) -> str:
        """What the served model's layers follow where a request asks nothing."""
        return VANILLA if self.verify == DRAFT else self.policy

    @property
    def of_drafter(self) -> "Options":
        """For the layers of a model that drafts: what moves the served model's policy is not theirs."""
        policy = self.policy if self.verify == DRAFT else VANILLA
        unbound = replace(self, guard=None, max_kl=None, back_off_kl=None, slo_tpot_ms=None, tuned=None, presets={})
        return replace(unbound, policy=policy, verify=EXACT, experts_residency=BLIND)  # its experts stay in memory

    @property
    def policies(self) -> list[Policy]:
        """All that may act where requests ask for nothing."""
        return [self.make_policy()] if self.tuned is None else [make_policy(spec) for spec in self.tuned.specs]

    def _check_kl(self, name: str, most: float | None) -> None:
        if most is None:
            return
        if not (is_number(most) and SMALLEST <= most <= LARGEST):
            raise ValueError(
                f"{KEY}: {name}={most!r} must be a number of nats from {SMALLEST:g} to {LARGEST:g}, such as 0.01 "
                "(perplexity up to 1 % higher)"
            )
        more = {
            "without shadow steps (shadow=0) nothing measures it": self.shadow == 0,
            "max_kl seeks the price, back_off_kl begins with the policy's": None not in (self.max_kl, self.back_off_kl),
            "tuned says which policy acts": self.tuned is not None,
        }
        self._moves_prices(f"{name}={most:g} bounds what the policy does", more)

    def _check_slo(self) -> None:
        goal = self.slo_tpot_ms
        if goal is None:
            return
        if not (is_number(goal) and 0 < goal < float("inf")):
            raise ValueError(f"{KEY}: slo_tpot_ms={goal!r} must be a number of milliseconds above 0, such as 50")
        more = {"tuned says which policy acts": self.tuned is not None}
        self._moves_prices(f"slo_tpot_ms={goal:g} moves the prices", more)

    def _moves_prices(self, what: str, more: Mapping[str, bool]) -> None:
        others = {
            f"verify={DRAFT!r} leaves the served model exact": self.verify == DRAFT,
            "a guard moves the policy too": self.guard is not None,
            f"policy={self.policy!r} changes nothing": self.make_policy().is_identity,
            **more,
        }
        for reason in (reason for reason, found in others.items() if found):
            raise ValueError(f"{KEY}: {what}, and {reason}; leave out either")

    def _check_tuned(self) -> None:
        if self.tuned is None:
            return
        others = {"guard": self.guard, f"verify={DRAFT!r}": self.verify == DRAFT or None}
        for other in (name for name, given in others.items() if given is not None):
            raise ValueError(f"{KEY}: tuned says which policy acts, and {other} would move it; leave out either")

    @property
    def tells_residency(self) -> bool:
        """Whether decisions may know which experts are in memory."""
        return self.experts_residency == AWARE

    def _check_experts(self) -> None:
        if self.experts_residency not in (BLIND, AWARE):
            raise ValueError(f"{KEY}: experts_residency={self.experts_residency!r} must be {BLIND!r} or {AWARE!r}")
        if self.tells_residency and self.experts_resident is None:
            raise ValueError(
                f"{KEY}: experts_residency={AWARE!r} tells which experts are in memory, and here all are; say "
                f"experts_resident, or leave it out"
            )
        for policy in (*self.policies, *(make_policy(spec) for spec in self.named.values() if spec is not None)):
            policy.check_residency(told=self.tells_residency)
        if self.experts_resident is not None:
            Amount.of(self.experts_resident)
        elif self.experts_folder is not None:
            raise ValueError(
                f"{KEY}: experts_folder={self.experts_folder!r} holds experts on a disk; say experts_resident"
            )

    @classmethod
    def of(cls, vllm_config: Any) -> Self | None:
        """The options in an engine's configuration; None where it has none: then the plugin does nothing at all."""
        extra = vllm_config.additional_config
        if not isinstance(extra, dict) or KEY not in extra:
            return None
        example = f'pass additional_config={{"{KEY}": {EXAMPLE}}}'
        given = extra[KEY]
        named = cls.known(given, example)
        guard, settings = given.get("guard"), given.get("tuned")
        if guard is not None:
            named["guard"] = GuardOptions.of(guard)
        if settings is not None:
            if "policy" in given:
                both = f"tuned says which policy acts, and policy={given['policy']!r} another"
                raise ValueError(f"{KEY}: {both}; leave out either")
            named["tuned"] = tuned.read(settings)
            named["policy"] = named["tuned"].specs[0]
        if "policy" not in named:
            raise ValueError(f"{KEY}: no policy is named; {example}")
        return cls(**named)


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
        "kv_sharing_fast_prefill runs layers on a part of the tokens, which is not supported yet; switch it "
        "off": cache.kv_sharing_fast_prefill,
    }
    reasons: list[str | None] = [reason for reason, found in refused.items() if found]
    reasons += ranks.refusals(vllm_config)
    options = Options.of(vllm_config)
    verify = EXACT if options is None else options.verify
    if options is not None and options.twice and (reason := twice.refusal(vllm_config)) is not None:
        reasons.append(f"{options.twice} runs the model twice on one step, and {reason}; leave it out")
    if options is not None and options.slo_tpot_ms is not None:
        reasons.append(twice.unpaced(vllm_config))
    if verify == DRAFT and parallel.pipeline_parallel_size > 1:
        reasons.append(
            f"verify={DRAFT!r}: of pipeline_parallel_size={parallel.pipeline_parallel_size} stages the last one alone "
            "has the model that drafts, so they would not agree on a policy; use 1, or another verify"
        )
    reasons += [
        disk.refusal(vllm_config) if options is not None and options.experts_resident is not None else None,
        speculation.refusal(vllm_config.speculative_config, verify),
        connectors.refusal(vllm_config.kv_transfer_config),
    ]
    for reason in reasons:
        if reason is not None:
            raise ValueError(f"{KEY}: {reason}")


def has_graphs(vllm_config: Any) -> bool:
    """Whether CUDA graphs will record the policy."""
    from vllm.config import CUDAGraphMode
    from vllm.platforms import current_platform

    return not current_platform.is_cpu() and vllm_config.compilation_config.cudagraph_mode != CUDAGraphMode.NONE
