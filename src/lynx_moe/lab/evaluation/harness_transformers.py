"""The harness's transformers class with `lynx_moe.apply`: batches of requests that start together.

A batch gets no new requests while it decodes, so it shrinks as they end; its last request decodes alone. Requests share
one only if they are generated alike (what ends them, how many tokens at most, sampling).
"""

from typing import Any

import torch

from lynx_moe.engines.transformers import Run, apply
from lynx_moe.lab.evaluation.harness import Batches, shuffled
from lynx_moe.lab.shared.models import unloadable


class Lockstep(Batches):
    """See `Batches`. `model` is the transformers model, `batch_size` how many requests start together."""

    model: Any
    tokenizer: Any
    batch_size: int
    acting: Run | None = None

    def set_policy(self, spec: str) -> str:
        run = apply(self.model, spec)
        if self.acting is not None:
            self.acting.remove()
        self.acting = run.install()
        return run.policy.spec

    def reset_stats(self) -> None:
        self._run().reset_stats()

    def stats(self) -> list[dict[str, Any]]:
        return [self._run().stats().as_dict()]

    def answer(self, requests: list[Any]) -> list[str]:
        answers = [""] * len(requests)
        for places in batches(requests, self.batch_size):
            for place, text in zip(places, super().answer([requests[place] for place in places]), strict=True):
                answers[place] = text
        return answers

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
        """A request that has written one of `stop` ends, as in a server. The harness's own criterion would let it
        decode on, and vote, until all of its batch have ended."""
        generate = super()._model_generate  # type: ignore[misc]
        return generate(context, max_length, stop=[], stop_strings=stop, tokenizer=self.tokenizer, **options)

    def _run(self) -> Run:
        if self.acting is None:
            self.set_policy("vanilla")
        assert self.acting is not None
        return self.acting


def batches(requests: list[Any], size: int) -> list[list[int]]:
    """Places of the requests in a random order, cut into batches of `size` that are generated alike."""
    alike: dict[str, list[int]] = {}
    for place in shuffled(len(requests)):
        alike.setdefault(repr(requests[place].args[1]), []).append(place)
    return [places[start : start + size] for places in alike.values() for start in range(0, len(places), size)]


def open_model(model: str, *, concurrency: int, mix: str, vision: bool, options: dict[str, Any]) -> Any:
    """The harness's model on transformers; `options` go to the harness's class and `from_pretrained`.

    Raises ValueError for tasks with images, and for a model that cannot be loaded.
    """
    if vision:
        raise ValueError("tasks with images run with --engine vllm only")
    from lm_eval.models.huggingface import HFLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = type("Lockstep", (Lockstep, HFLM), {})
    try:
        lm = kind(pretrained=model, batch_size=concurrency, **{"device": device, **options})
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(unloadable("transformers", model, error)) from error
    lm.mix, lm.parts = mix, []
    return lm
