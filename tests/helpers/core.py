"""An engine core as far as the prefix cache knows it, with vLLM's own requests and hashes."""

from types import SimpleNamespace
from typing import Any

from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core import kv_cache_utils
from vllm.v1.request import Request

from lynx_moe.engines.vllm import plugin
from lynx_moe.engines.vllm.step import cache

SIZE = 4
TOKENS = list(range(100, 140))
kv_cache_utils.init_none_hash(sha256)
plugin._wrap_core()


class Core:
    """An engine core as far as the cache knows it."""

    def __init__(self, policy: str) -> None:
        self.vllm_config = SimpleNamespace(additional_config={"lynx_moe": {"policy": policy}})
        self.scheduler = SimpleNamespace(requests={})
        self.told: list[Any] = []

    def add(self, prompt: int, wish: str | None = None, generated: int = 0) -> Request:
        """A request whose prompt are the first TOKENS and which generates the next ones."""
        params = SamplingParams(max_tokens=9, extra_args=wish and {"lynx_moe": wish})
        hasher = kv_cache_utils.get_request_block_hasher(SIZE, sha256)
        name = str(len(self.scheduler.requests))
        request = Request(name, TOKENS[:prompt], params, None, block_hasher=hasher)
        cache.add_request(lambda core, new: core.scheduler.requests.update({new.request_id: new}), self, request)
        for token in TOKENS[prompt : prompt + generated]:
            request.append_output_token_ids(token)
        return request


def shared(a: Request, b: Request) -> int:
    """How many of b's blocks would be found where a was before."""
    found = set(a.block_hashes)
    return sum(block in found for block in b.block_hashes)
