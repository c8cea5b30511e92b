"""A cache is known by what it is: transformers renames its argument between versions."""

import inspect
from typing import Any

import pytest
import torch
from tiny_transformers import ARCHITECTURES, beside, cache_of, make
from transformers import Cache, DynamicCache

import lynx_moe
from lynx_moe.engines.transformers.cache import cache_in, cache_name


def old(input_ids: Any, past_key_values: Cache | None = None, use_cache: bool = True) -> None: ...
def new(input_ids: Any, cache: Cache | None = None, use_cache: bool = True) -> None: ...
def own(input_ids: Any, memory: "DynamicCache | None" = None, use_cache: bool = True) -> None: ...
def from_a_hub(input_ids, past_key_values=None, use_cache=True): ...
def without(input_ids: Any, use_cache: bool = True, num_cached: int = 0) -> None: ...


@pytest.mark.parametrize(
    ("forward", "name"),
    [(old, "past_key_values"), (new, "cache"), (own, "memory"), (from_a_hub, "past_key_values"), (without, None)],
)
def test_the_parameter_is_found_by_its_type_and_then_by_its_names(forward, name):
    assert cache_name(forward) == name


def test_the_cache_is_found_among_any_values():
    cache = DynamicCache()
    assert cache_in([None, torch.zeros(2), True, cache]) is cache
    assert cache_in([None, torch.zeros(2)]) is None


@pytest.fixture
def model():
    return make(ARCHITECTURES["qwen3_moe"])


@pytest.mark.parametrize("name", ["memory", "cache", "past_key_values"])
def test_a_decoder_that_calls_its_cache_otherwise_is_remapped(model, name, monkeypatch):
    """The decoder of another version: its forward and its output have another name for the cache."""
    kind, theirs = type(model.model), cache_name(model.model.forward)
    original = kind.forward

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **kwargs):
        given = {theirs: kwargs.pop(name, None)}
        return original(self, input_ids, attention_mask, inputs_embeds=inputs_embeds, **given, **kwargs)

    monkeypatch.setattr(kind, "forward", forward)
    forward.__signature__ = inspect.signature(original).replace(
        parameters=[
            p.replace(name=name) if p.name == theirs else p for p in inspect.signature(original).parameters.values()
        ]
    )
    decoder = model.model
    with lynx_moe.apply(decoder, "topk:k=1") as run, torch.inference_mode():
        cache = cache_of(decoder(torch.randint(3, 90, (4, 5)), use_cache=True))
        decoder(torch.randint(3, 90, (4, 1)), **beside(decoder, cache))
    assert (run.stats().steps["prefill"], run.stats().steps["decode"]) == (1, 1)
    assert run.stats().mean_after < run.stats().mean_before
