"""Where vLLM's unquantised experts on a CPU become pages of a file.

create_weights                   a layer's experts become mapped memory of a file in the making, or nothing at all
                                 where the file is there already
param.weight_loader              fills it, or passes by
process_weights_after_loading    vLLM's own packing, an expert at a time, into the file; after the last layer the
                                 file is whole, and the parameters become the slots (`paged.py`)
experts.apply                    sees that what the step asks for is in the slots

Older versions of vLLM have not all of it: what is imported in functions here is there when somebody asks for it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lynx_moe.engines.disk.amount import Amount
from lynx_moe.engines.disk.origin import default_folder
from lynx_moe.engines.shared.refusals import refusing
from lynx_moe.engines.shared.wrap import wrap
from lynx_moe.engines.vllm.launch.options import Options

MARK = "lynx_moe_paged"  # attribute of a layer's experts
_building: list[Any] = []  # the Paged of the model that is built


@contextmanager
def building(options: Options, vllm_config: Any) -> Iterator[Any]:
    """In here a model is built, whose experts lie on a disk if the options say so. Gives its `Paged`, or None."""
    if options.experts_resident is None:
        yield None
        return
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    from lynx_moe.engines.vllm.model.paged import Paged

    wrap(UnquantizedFusedMoEMethod, "create_weights", _create)
    wrap(UnquantizedFusedMoEMethod, "process_weights_after_loading", _process)
    folder = default_folder() if options.experts_folder is None else Path(options.experts_folder).expanduser()
    paged = Paged(Amount.of(options.experts_resident), folder, vllm_config)
    _building.append(paged)
    try:
        yield paged
    finally:
        _building.clear()


def fit(paged: Any, model: Any) -> None:
    """The model is built, and no weight is loaded. Raises ValueError where some of its experts cannot lie on a disk, or
    the memory is too little."""
    if paged is None:
        return
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    for module in model.modules():
        if isinstance(module, RoutedExperts) and not hasattr(module, MARK):
            raise ValueError(
                f"experts_resident: the experts of {module.layer_name} are of {type(module.quant_method).__name__}, "
                "and only unquantised ones can lie on a disk yet; leave it out, or serve the model in bfloat16"
            )
    paged.fit()


def _create(original: Callable[..., Any], method: Any, layer: Any, *args: Any, **kwargs: Any) -> Any:
    created = original(method, layer, *args, **kwargs)
    if _building:
        with refusing(), _named(_building[0]):
            _building[0].take(method, layer)
        setattr(layer, MARK, _building[0])
    return created


def _process(original: Callable[..., Any], method: Any, layer: Any) -> Any:
    paged = getattr(layer, MARK, None)
    if paged is None:
        return original(method, layer)
    with refusing(), _named(paged):
        return paged.pack(method, layer)


@contextmanager
def _named(paged: Any) -> Iterator[None]:
    """What a disk says, as a reason for a refusal."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"the experts' file in {paged.folder} failed: {error}; choose another folder (experts_folder)"
        ) from error
