"""`generate`, static caches, torch.compile and other types: the same rows and the same decisions."""

import warnings

import pytest
import torch
from tiny_transformers import ARCHITECTURES, beside, cache_of, make
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import CompileConfig, GenerationConfig, PreTrainedTokenizerFast, StaticCache

import lynx_moe

SPEC = "lynx:alpha=0.3,beta=1"
NEW, PROMPT = 6, 5


@pytest.fixture(scope="module")
def model():
    return make(ARCHITECTURES["mixtral"])


def prompts():
    torch.manual_seed(3)
    ids, mask = torch.randint(3, 90, (4, PROMPT)), torch.ones(4, PROMPT, dtype=torch.long)
    ids[0, :2], mask[0, :2] = 0, 0
    return {"inputs": ids, "attention_mask": mask, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}


def generate(model, policy, **options):
    """New tokens, and what was counted."""
    with lynx_moe.apply(model, policy) as run:
        tokens = model.generate(**{**prompts(), "eos_token_id": None, **options})
    return tokens[:, PROMPT:], run.stats()


@pytest.fixture(scope="module")
def plain(model):
    """Four sequences that do not end, without a policy."""
    return model.generate(**prompts(), eos_token_id=None)[:, PROMPT:]


def rows_after_end(tokens, end):
    """Rows of the decode steps whose sequence has not had its end yet: the end itself is fed once more, in vain."""
    fed = tokens[:, : NEW - 1]
    return int((torch.cumsum(fed == end, 1) == 0).sum())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 2},
        {"prefill_chunk_size": 4},  # its last chunk is one token long
    ],
    ids=str,
)
def test_sequences_that_have_ended_do_not_vote(model, plain, options):
    end = next(int(t) for t in plain[1] if (plain[0] != t).all())  # of some sequences, and not of the first
    tokens, stats = generate(model, "vanilla", eos_token_id=end, **options)
    expected = rows_after_end(plain, end)
    assert expected < 4 * (NEW - 1)
    assert stats.layers[0].decode.rows + stats.layers[0].mixed.rows == expected
    assert stats.steps["decode"] == NEW - 1
    alive = torch.cumsum(plain == end, 1).roll(1, 1) == 0
    alive[:, 0] = True
    assert torch.equal(tokens[alive], plain[alive])


def test_the_end_is_the_one_that_generate_uses(model, plain):
    end = int(plain[1, 1])
    every = 4 * (NEW - 1)

    def rows(*args, **options):
        with lynx_moe.apply(model, "vanilla") as run:
            model.generate(prompts()["inputs"], *args, attention_mask=prompts()["attention_mask"], **options)
        return sum(tally.rows for layer in run.stats().layers[:1] for tally in (layer.decode, layer.mixed))

    never = next(token for token in range(96) if (plain != token).all())
    given = GenerationConfig(eos_token_id=[never, end], pad_token_id=0, max_new_tokens=NEW, do_sample=False)
    ended = rows_after_end(plain, end)
    assert ended < every
    assert rows(given) == rows(generation_config=given) == ended
    options = {"pad_token_id": 0, "max_new_tokens": NEW, "do_sample": False}
    assert rows(**options, eos_token_id=torch.tensor(end)) == ended
    model.generation_config.eos_token_id = end
    try:
        assert rows(**options) == ended
        assert rows(**options, eos_token_id=None) == every
    finally:
        model.generation_config.eos_token_id = 2


def test_sequences_that_a_stop_string_has_ended_do_not_vote_once_they_are_padded(model, plain):
    never = next(token for token in range(1, 96) if (plain != token).all())
    stop = next(int(t) for t in plain[1, :-2] if (plain[0] != t).all())
    fed = plain[:, : NEW - 1]
    ended = torch.cumsum(fed == stop, 1) > 0
    padded = int(ended.sum() - (ended.any(1)).sum())  # the token that completes the string is fed once more
    assert padded > 0
    words = {"abcdef": 0} | {f"word{number:02}": number for number in range(1, 96)}  # 0: what transformers tries out
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="word01")))
    stops = {"stop_strings": [f"word{stop:02}"], "tokenizer": tokenizer}
    tokens, stats = generate(model, "vanilla", eos_token_id=never, **stops)
    assert torch.equal(tokens[0], plain[0])
    assert stats.layers[0].decode.rows == 4 * (NEW - 1) - padded


def test_an_end_in_a_prompt_or_outside_generate_ends_nothing(model, plain):
    end = next(int(token) for token in prompts()["inputs"].flatten() if token > 2 and (plain != token).all())
    stats = generate(model, "vanilla", eos_token_id=end)[1]
    assert stats.layers[0].decode.rows == 4 * (NEW - 1)
    with lynx_moe.apply(model, "vanilla") as run, torch.no_grad():
        cache = cache_of(model(prompts()["inputs"], use_cache=True))
        model(torch.full((4, 1), model.generation_config.eos_token_id), **beside(model, cache))
    assert run.stats().layers[0].decode.rows == 4


@pytest.mark.parametrize(
    ("options", "steps", "rows"),
    [
        ({"use_cache": False}, {"prefill": NEW, "decode": 0}, 0),
        ({"num_beams": 2}, {"prefill": 1, "decode": NEW - 1}, 8 * (NEW - 1)),
        ({"num_return_sequences": 2, "do_sample": True}, {"prefill": 1, "decode": NEW - 1}, 8 * (NEW - 1)),
    ],
    ids=str,
)
def test_kinds_of_generation(model, options, steps, rows):
    stats = generate(model, SPEC, **options)[1]
    assert {kind: stats.steps[kind] for kind in steps} == steps
    assert stats.layers[0].decode.rows == stats.layers[0].decode.decode_rows == rows
    assert stats.mean_after < stats.mean_before or not rows


def lockstep(model, step):
    """Logits of four teacher-forced decode steps on a static cache; `step` may be compiled."""
    torch.manual_seed(4)
    tokens, mask = torch.randint(3, 90, (4, 4)), torch.ones(4, PROMPT + 4, dtype=torch.long)
    mask[0, :2] = 0
    cache, found = StaticCache(config=model.config, max_cache_len=16), []
    with torch.no_grad():
        model(prompts()["inputs"], attention_mask=mask[:, :PROMPT], **beside(model, cache))
        for place in range(4):
            seen = mask[:, : PROMPT + place + 1]
            found.append(step(tokens[:, place : place + 1], attention_mask=seen, **beside(model, cache)).logits)
    return torch.stack(found)


def test_compiled_equals_eager_and_graphs_follow_the_block():
    """One graph each, fullgraph: compiled before the policy came, used under two policies and after both."""
    model = make(ARCHITECTURES["mixtral"], num_hidden_layers=1)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model.__call__, backend=backend, fullgraph=True)
    plain = lockstep(model, model)
    assert torch.equal(lockstep(model, compiled), plain)
    for spec in ("vanilla", SPEC):
        with lynx_moe.apply(model, spec) as run:
            eager, stats = lockstep(model, model), run.stats()
            run.reset_stats()
            before = len(graphs)
            torch.testing.assert_close(lockstep(model, compiled), eager, rtol=1e-5, atol=1e-6)
            assert len(graphs) > before
            assert run.stats() == stats
            assert stats.layers[0].decode.rows == 16
        assert torch.equal(eager, plain) == (spec == "vanilla")
    before = len(graphs)
    assert torch.equal(lockstep(model, compiled), plain)
    assert len(graphs) == before


def test_generate_compiles_its_decode_step():
    """As it does by itself on a GPU: with a static cache."""
    model = make(ARCHITECTURES["mixtral"], num_hidden_layers=1)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    config = CompileConfig(backend=backend, fullgraph=True, mode=None)
    config._compile_all_devices = True
    torch._dynamo.reset()
    end = int(generate(model, "vanilla")[0][1, 1])
    options = {"cache_implementation": "static", "eos_token_id": end}
    eager, counted = generate(model, SPEC, **options)
    tokens, stats = generate(model, SPEC, **options, compile_config=config)
    assert len(graphs) == 1
    assert torch.equal(tokens, eager)
    assert stats == counted
    assert stats.layers[0].decode.rows < 4 * (NEW - 1)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "deepseek_v3", "dbrx", "llama4_text", "jetmoe", "phimoe"])
def test_in_bfloat16(name):
    model = make(ARCHITECTURES[name]).to(torch.bfloat16)
    reference = model.generate(**prompts(), eos_token_id=None)[:, PROMPT:]
    assert torch.equal(generate(model, "vanilla")[0], reference)
    stats = generate(model, SPEC)[1]
    assert stats.mean_after < stats.mean_before


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "granitemoe"])
def test_the_experts_implementation_does_not_matter(name):
    model, found = make(ARCHITECTURES[name]), {}
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(implementation)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with lynx_moe.apply(model, SPEC) as run:
                logits = lockstep(model, model)
            found[implementation] = (logits, run.stats())
    for implementation in ("grouped_mm", "batched_mm"):
        torch.testing.assert_close(found[implementation][0], found["eager"][0], rtol=1e-4, atol=1e-5)
        assert found[implementation][1] == found["eager"][1]
    assert found["eager"][1].mean_after < found["eager"][1].mean_before
