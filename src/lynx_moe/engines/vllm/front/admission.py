"""What a request may ask for, decided in the front-end process: a bad wish is refused (HTTP 400) before the engine
sees it.

A request asks by `SamplingParams.extra_args["lynx_moe"]`, which is `vllm_xargs: {"lynx_moe": ...}` of vLLM's server:
"exact", a name (`Options.named`), or a spec string of its own.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lynx_moe.engines.vllm.launch.options import EXACT, KEY, Options, asked, has_graphs, model_shape
from lynx_moe.policies import make_policy
from lynx_moe.policies.contract.trial import tried
from lynx_moe.routing import RouterSpec

LONGEST = 300  # characters of a wish
STATE = "_lynx_moe_admission"  # attribute of AsyncLLM and LLMEngine


class Admission:
    """The door of one front end. `processor` is its output processor, which knows the requests that are running."""

    def __init__(self, options: Options, vllm_config: Any, processor: Any) -> None:
        self.options, self.processor = options, processor
        self.shape = model_shape(vllm_config.model_config)
        self.router = _router(vllm_config.model_config)
        self.recorded = options.make_policy().for_model(self.shape).spec if has_graphs(vllm_config) else None
        self.arriving: Counter[str] = Counter()
        self.running: dict[str, str] = {}
        self.tried: set[str] = set()

    def check(self, wish: Any) -> str | None:
        """The spec that a request brings of its own; None if it asks by name. Raises ValueError for what it may not
        have; the message says what is allowed."""
        named = self.options.named
        if not isinstance(wish, str):
            raise ValueError(f"{KEY}: {repr(wish)[:50]} must be a string; {self._allowed()}")
        if len(wish) > LONGEST:
            raise ValueError(f"{KEY}: {wish[:20]!r}... is longer than {LONGEST} characters; {self._allowed()}")
        if wish == EXACT or named.get(wish, wish) is None:
            return None
        try:
            policy = make_policy(named.get(wish) or wish).for_model(self.shape)
            if wish not in named and policy.calibration_file is not None:
                raise ValueError("only the operator's presets may name files")
            policy.check(self.router)
            if wish not in named and policy.spec not in self.tried:
                tried(policy, self.router)
                self.tried = {*self.tried, policy.spec} if len(self.tried) < 64 else {policy.spec}
        except ValueError as error:
            raise ValueError(f"{KEY}: {wish!r}: {error}; {self._allowed()}") from None
        spec = None if policy.is_identity or wish in named else policy.spec
        if self.recorded not in (None, policy.spec) and not policy.is_identity:
            raise ValueError(
                f"{KEY}: {wish!r}: CUDA graphs have recorded {self.recorded!r}; allowed: {EXACT}, that policy, or an "
                "engine with enforce_eager=True"
            )
        if spec is not None:
            self._count(spec, wish)
        return spec

    @contextmanager
    def held(self, request_id: str, wish: Any) -> Iterator[None]:
        """Around the hand-over of a request: what it brings counts until it has ended. Raises as `check`."""
        spec = self.check(wish)
        if spec is None:
            yield
            return
        self.arriving[spec] += 1
        try:
            yield
            self.running[request_id] = spec
        finally:
            self.arriving[spec] -= 1

    def _count(self, spec: str, wish: str) -> None:
        alive = self.processor.external_req_ids
        self.running = {name: brought for name, brought in self.running.items() if name in alive}
        others = ({*self.running.values()} | set(+self.arriving)) - {spec}
        if len(others) >= self.options.max_policies:
            raise ValueError(
                f"{KEY}: {wish!r}: the running requests may bring max_policies={self.options.max_policies} specs of "
                f"their own, and bring {', '.join(sorted(others)) or 'none'}; {self._allowed()}"
            )

    def _allowed(self) -> str:
        own = ", or a policy's spec such as lynx:alpha=3,beta=2" if self.options.max_policies else ""
        return f"allowed: {', '.join((EXACT, *self.options.named))}{own}"


def of(engine: Any) -> Admission | None:
    """The admission of an AsyncLLM or LLMEngine; None where the plugin is not configured."""
    if STATE not in engine.__dict__:
        options = Options.of(engine.vllm_config)
        made = options and Admission(options, engine.vllm_config, engine.output_processor)
        engine.__dict__[STATE] = made
    found: Admission | None = engine.__dict__[STATE]
    return found


def generate(original: Any, engine: Any, prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
    """Around AsyncLLM.generate: refuses when it is called, when a streamed answer has not begun yet."""
    wish = asked(sampling_params)
    if wish is not None and (admission := of(engine)) is not None:
        admission.check(wish)
    return original(engine, prompt, sampling_params, *args, **kwargs)


def add_request(
    original: Any, engine: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    """Around LLMEngine.add_request."""
    wish = asked(params)
    if wish is None or (admission := of(engine)) is None:
        return original(engine, request_id, prompt, params, *args, **kwargs)
    with admission.held(request_id, wish):
        return original(engine, request_id, prompt, params, *args, **kwargs)


async def add_request_async(
    original: Any, engine: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    """Around AsyncLLM.add_request."""
    wish = asked(params)
    if wish is None or (admission := of(engine)) is None:
        return await original(engine, request_id, prompt, params, *args, **kwargs)
    with admission.held(request_id, wish):
        return await original(engine, request_id, prompt, params, *args, **kwargs)


def to_beam_search_params(original: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Around the method of vLLM's completion and chat requests: beam search drops `vllm_xargs`."""
    if KEY in (request.vllm_xargs or {}):
        raise ValueError(f"{KEY}: vLLM's beam search takes no vllm_xargs; leave out {KEY!r}, or use_beam_search")
    return original(request, *args, **kwargs)


def _router(model_config: Any) -> RouterSpec:
    """The model's router as its configuration has it: the workers know each layer's."""
    config = model_config.hf_text_config
    n_group, topk_group = (getattr(config, name, None) or 1 for name in ("n_group", "topk_group"))
    return RouterSpec(
        num_experts=model_config.get_num_experts(),
        top_k=model_config.get_num_experts_per_tok(),
        groups=(n_group, topk_group) if n_group > 1 else None,
    )
