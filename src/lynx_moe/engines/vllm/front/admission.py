"""What a request may ask for, decided in the front-end process: a bad wish is refused (HTTP 400) before the engine
sees it. What a wish is, `wishes.py` says.
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from vllm import exceptions

from lynx_moe.engines.shared.options import EXACT, KEY
from lynx_moe.engines.shared.step import wishes
from lynx_moe.engines.vllm.front import control
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.step.built import ASK, Model
from lynx_moe.policies import Policy, make_policy
from lynx_moe.policies.contract.trial import tried

logger = logging.getLogger(f"vllm.{KEY}")
STATE = "_lynx_moe_admission"  # attribute of AsyncLLM and LLMEngine


class Unwelcome(ValueError, getattr(exceptions, "VLLMClientError", Exception)):  # type: ignore[misc]
    """A wish is refused. Also what vLLM knows as the client's fault: AsyncLLM hands it on as it is."""


class Admission:
    """The door of one front end. `processor` is its output processor, which knows the requests that are running;
    `model` is what the workers told of theirs: until they have, what depends on it is left to them."""

    def __init__(self, options: Options, processor: Any) -> None:
        self.options, self.processor = options, processor
        self.model: Model | None = None
        self.unasked = True
        self.arriving: Counter[str] = Counter()
        self.running: dict[str, str] = {}
        self.tried: set[str] = set()

    def check(self, wish: Any) -> str | None:
        """The spec that a request brings of its own; None if it asks by name. Raises Unwelcome for what it may not
        have; the message says what is allowed."""
        try:
            spec = wishes.spec_of(wish, self.options)
        except ValueError as error:
            raise self._refusal(str(error)) from None
        if spec is None or spec == EXACT:
            return None
        own = not isinstance(wish, str) or wish not in self.options.named
        try:
            policy = self._fitting(spec, own=own)
        except ValueError as error:
            raise self._refusal(f"{wish!r}: {error}") from None
        recorded = None if self.model is None else self.model.recorded
        if recorded is not None and not policy.is_identity and not wishes.together(recorded, policy):
            raise Unwelcome(
                f"{KEY}: {wish!r}: CUDA graphs have recorded {recorded!r}; allowed: {EXACT}, that policy (at any "
                "price, if it knows prices), or an engine with enforce_eager=True"
            )
        if not wishes.brings(wish, policy, self.options):
            return None
        self._count(policy.spec, wish)
        return policy.spec

    def _fitting(self, spec: str, *, own: bool) -> Policy:
        """The policy of a spec, as the model's routers would have it. Raises ValueError."""
        policy = make_policy(spec)
        if self.model is None:
            return policy
        policy = policy.for_model(self.model.shape)
        for router in self.model.routers:
            policy.check(router)
            if own and policy.spec not in self.tried:
                tried(policy, router, residency=self.options.tells_residency)
        if own:
            self.tried = {*self.tried, policy.spec} if len(self.tried) < 64 else {policy.spec}
        return policy

    @contextmanager
    def held(self, request_id: str, wish: Any) -> Iterator[None]:
        """Around the hand-over of a request: what it brings counts until it has ended. Raises as `check`."""
        spec = None if wish is None else self.check(wish)
        if spec is None:
            yield
            return
        self.arriving[spec] += 1
        try:
            yield
            self.running[request_id] = spec
        finally:
            self.arriving[spec] -= 1

    async def parts(self, request_id: str, stream: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """The parts of a streamed prompt, each of which may bring a wish. Raises as `check`, before a part goes on."""
        async for part in stream:
            wish = _wish(part.sampling_params)
            if part.sampling_params is not None:
                self.running.pop(request_id, None)
            if wish is not None and (spec := self.check(wish)) is not None:
                self.running[request_id] = spec
            yield part

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Around the question to the workers: without their answer they check by themselves, and nobody is refused."""
        try:
            yield
        except Exception as error:
            logger.warning("%s: the workers do not tell of the model, so wishes are checked by them: %s", KEY, error)

    def _count(self, spec: str, wish: str) -> None:
        alive = self.processor.external_req_ids
        self.running = {name: brought for name, brought in self.running.items() if name in alive}
        others = ({*self.running.values()} | set(+self.arriving)) - {spec}
        reason = wishes.too_many(wish, others, self.options)
        if reason is not None:
            raise self._refusal(reason)

    def _refusal(self, reason: str) -> Unwelcome:
        return Unwelcome(f"{KEY}: {reason}; allowed: {wishes.allowed(self.options)}")


def of(engine: Any) -> Admission | None:
    """The admission of an AsyncLLM or LLMEngine; None where the plugin is not configured."""
    if STATE not in engine.__dict__:
        options = Options.of(engine.vllm_config)
        engine.__dict__[STATE] = options and Admission(options, engine.output_processor)
    found: Admission | None = engine.__dict__[STATE]
    return found


async def get_supported_tasks(original: Any, engine: Any) -> Any:
    """Around AsyncLLM.get_supported_tasks, which a server asks before its first request, and AsyncLLM before each: by
    then the model is built, and its workers can tell of it."""
    tasks = await original(engine)
    admission = of(engine)
    if admission is not None and admission.unasked:
        admission.unasked = False
        with admission.hearing():
            admission.model = Model.heard(control.flat(await engine.collective_rpc(ASK)))
    return tasks


def check(engine: Any, sampling_params: Any) -> None:
    """Raises Unwelcome for a request with these parameters that an AsyncLLM would not take."""
    if (admission := of(engine)) is not None:
        wish = _wish(sampling_params)
        if wish is not None:
            admission.check(wish)


def generate(original: Any, engine: Any, prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
    """Around AsyncLLM.generate: refuses when it is called, when a streamed answer has not begun yet."""
    check(engine, _params(prompt, sampling_params))
    return original(engine, prompt, sampling_params, *args, **kwargs)


def add_request(
    original: Any, engine: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    """Around LLMEngine.add_request."""
    if (admission := of(engine)) is None:
        return original(engine, request_id, prompt, params, *args, **kwargs)
    wish = _wish(_params(prompt, params))
    if wish is not None and admission.unasked:
        admission.unasked = False
        with admission.hearing():
            admission.model = Model.heard(control.flat(engine.collective_rpc(ASK)))
    with admission.held(request_id, wish):
        return original(engine, request_id, prompt, params, *args, **kwargs)


async def add_request_async(
    original: Any, engine: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    """Around AsyncLLM.add_request."""
    if (admission := of(engine)) is None:
        return await original(engine, request_id, prompt, params, *args, **kwargs)
    wish = _wish(_params(prompt, params))
    if isinstance(prompt, AsyncGenerator):
        prompt = admission.parts(request_id, prompt)
    if wish is not None and admission.unasked:
        await engine.get_supported_tasks()
    with admission.held(request_id, wish):
        return await original(engine, request_id, prompt, params, *args, **kwargs)


def to_beam_search_params(original: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Around the method of vLLM's completion and chat requests: beam search drops `vllm_xargs`."""
    key = wishes.first_key(request.vllm_xargs)
    if key is not None:
        raise Unwelcome(f"{KEY}: vLLM's beam search takes no vllm_xargs; leave out {key!r}, or use_beam_search")
    return original(request, *args, **kwargs)


def _params(prompt: Any, params: Any) -> Any:
    """The sampling parameters that the engine will see: a request that is made already brings its own."""
    made = getattr(prompt, "sampling_params", None)
    return params if made is None else made


def _wish(sampling_params: Any) -> Any:
    """What a request asks for; None: nothing. Raises Unwelcome for a misspelt key."""
    try:
        wishes.check_keys(sampling_params)
    except ValueError as error:
        raise Unwelcome(str(error)) from None
    return wishes.asked(sampling_params)
