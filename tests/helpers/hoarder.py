"""A connector as some stores have one: everything that a request computes is kept, under a hash of the tokens alone."""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import ExampleConnector


class Hoarder(ExampleConnector):
    """vLLM's connector on disk, which keeps prompts only, and whatever is generated whenever a block is full."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requests: dict[str, Any] = {}
        self.blocks: dict[str, list[int]] = {}

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        self.requests[request.request_id] = request

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        meta = super().build_connector_meta(scheduler_output)
        for new in scheduler_output.scheduled_new_reqs:
            self.blocks[new.req_id] = list(new.block_ids[0])
        running = scheduler_output.scheduled_cached_reqs
        for name, computed, added in zip(
            running.req_ids, running.num_computed_tokens, running.new_block_ids, strict=True
        ):
            self.blocks[name] += added[0] if added else []
            length = computed + scheduler_output.num_scheduled_tokens[name]
            if length % self._block_size == 0:
                tokens = [*self.requests[name].all_token_ids[:length], 0]  # it leaves the last token out
                meta.add_request(tokens, self.blocks[name], self._block_size, is_store=True, mm_hashes=[])
        return meta
