"""What is known of the built model where it is not: each of its layers' routers, told by the workers that have them.

vLLM's configuration says it for some models, and nothing or something else for others; the layers never err.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.vllm.launch.versions import experts_per_token
from lynx_moe.policies import ModelShape
from lynx_moe.routing import RouterSpec

ASK = "lynx_model"  # the workers' method


@dataclass(frozen=True, kw_only=True)
class Model:
    """shape     what policies with published settings know it by.
    routers   the different sizes of its routers: experts, top-k and groups; bias and scale stay with the workers.
    recorded  the spec that CUDA graphs have recorded; None: there are none.
    """

    shape: ModelShape
    routers: tuple[RouterSpec, ...]
    recorded: str | None = None

    def told(self) -> dict[str, Any]:
        """In plain values, for `heard`."""
        sizes = [(router.num_experts, router.top_k, router.groups) for router in self.routers]
        return {"shape": asdict(self.shape), "routers": sizes, "recorded": self.recorded}

    @classmethod
    def heard(cls, answers: Iterable[dict[str, Any]]) -> Self:
        """The model whose parts the workers have; stages without an MoE layer have nothing to say of it."""
        found = sorted(answers, key=lambda answer: not answer["routers"])
        sizes = dict.fromkeys(_size(*given) for answer in found for given in answer["routers"])
        return cls(
            shape=ModelShape(**found[0]["shape"]),
            routers=tuple(RouterSpec(num_experts=E, top_k=K, groups=groups) for E, K, groups in sizes),
            recorded=found[0]["recorded"],
        )


def routers_of(layers: Sequence[Layer]) -> tuple[RouterSpec, ...]:
    """One router of each size that these layers have."""
    specs = (layer.spec for layer in layers)
    return tuple({(spec.num_experts, spec.top_k, spec.groups): spec for spec in specs}.values())


def configured_shape(model_config: Any) -> ModelShape:
    """What vLLM's configuration says, before the layers are there; 0 experts where it says nothing."""
    return ModelShape(
        model_type=model_config.hf_text_config.model_type,
        num_layers=model_config.get_total_num_hidden_layers(),
        num_experts=_number(model_config.get_num_experts()),
        top_k=_number(experts_per_token(model_config)),
        name=str(model_config.model),
    )


def _size(num_experts: int, top_k: int, groups: Sequence[int] | None) -> tuple[int, int, tuple[int, int] | None]:
    return num_experts, top_k, None if groups is None else (groups[0], groups[1])


def _number(given: Any) -> int:
    return given if isinstance(given, int) else 0
