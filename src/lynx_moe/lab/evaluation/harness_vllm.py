"""The harness's vLLM class around one engine, which keeps `max_num_seqs` requests running until none is left."""

from collections.abc import Sequence
from typing import Any

from lynx_moe.engines.vllm.launch.command import name_vllm
from lynx_moe.lab.evaluation.harness import Batches, shuffled
from lynx_moe.lab.shared.engine import import_vllm
from lynx_moe.lab.shared.models import unloadable


class Shuffled:
    """A `vllm.LLM` that takes up its prompts in a random order, the same one for as many prompts."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llm, name)

    def generate(self, prompts: Sequence[Any], sampling_params: Any = None, **options: Any) -> list[Any]:
        order = shuffled(len(prompts))
        params = [sampling_params[i] for i in order] if isinstance(sampling_params, list) else sampling_params
        outputs = self.llm.generate([prompts[i] for i in order], sampling_params=params, **options)
        back = dict(zip(order, outputs, strict=True))
        return [back[i] for i in range(len(prompts))]


class Served(Batches):
    """See `Batches`. `model` is the engine."""

    model: Any

    def set_policy(self, spec: str) -> str:
        full: str = self.model.collective_rpc("lynx_set_policy", args=(spec,))[0]
        return full

    def set_guard(self, options: dict[str, Any] | None) -> None:
        self.model.collective_rpc("lynx_set_guard", args=(options,))

    def reset_stats(self) -> None:
        self.model.collective_rpc("lynx_reset_stats")

    def stats(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.model.collective_rpc("lynx_stats")
        return found

    def begin(self) -> None:
        """Prompts are computed anew: no policy finds another's cache."""
        super().begin()
        self.model.reset_prefix_cache()


def open_model(model: str, *, concurrency: int, mix: str, vision: bool, options: dict[str, Any]) -> Any:
    """The harness's model of one vLLM engine: eager, policy `vanilla`; `options` go to the harness's class and vLLM."""
    import_vllm()
    name_vllm()  # the harness looks up its version
    try:
        if vision:
            from lm_eval.models.vllm_vlms import VLLM_VLM as Base
        else:
            from lm_eval.models.vllm_causallms import VLLM as Base
    except ImportError as error:
        raise ValueError(f"the harness's vLLM model cannot be imported: {error}; install what it lacks") from None
    ours = {"max_num_seqs": concurrency, "additional_config": {"lynx_moe": {"policy": "vanilla", "log_every": 0}}}
    kind = type("Served", (Served, Base), {})
    try:
        lm = kind(pretrained=model, **ours, **{"enforce_eager": True, "use_tqdm_on_load": False, **options})
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(unloadable("vLLM", model, error)) from error
    lm.mix, lm.parts, lm.model = mix, [], Shuffled(lm.model)
    return lm
