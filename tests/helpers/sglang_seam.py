"""What tests on SGLang's seam share: a router's rule, and a request as far as it is looked at."""

from types import SimpleNamespace
from typing import Any

from lynx_moe.policies import ModelShape
from lynx_moe.routing import RouterSpec

E, K = 64, 8
SPEC = RouterSpec(num_experts=E, top_k=K)
SHAPE = ModelShape(model_type="qwen3_moe", num_layers=1, num_experts=E, top_k=K, name="testbed")


class Req:
    """What is looked at of SGLang's."""

    def __init__(self, rid: str, wish: Any = None, prompt: int = 4) -> None:
        self.rid, self.origin_input_ids, self.to_finish = rid, list(range(prompt)), None
        given = wish if isinstance(wish, dict) or wish is None else {"lynx_moe": wish}
        self.sampling_params = SimpleNamespace(custom_params=given)
        self.ended = False

    def finished(self) -> bool:
        return self.ended

    def set_finish_with_abort(self, message: str) -> None:
        self.to_finish = message
