"""`offload`: the plain model's answers bit for bit, few experts in memory, and clear ends."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_transformers import ARCHITECTURES, COMMON, beside, cache_of, make
from transformers import AutoModelForCausalLM, conversion_mapping
from transformers.core_model_loading import Transpose, WeightConverter

import lynx_moe
from lynx_moe.engines.disk.source import ReadError
from lynx_moe.testbed import path

FAMILIES = ("qwen3-moe", "mixtral", "olmoe", "deepseek-v3", "gpt-oss")
EXPERT_BYTES = 3 * 128 * 32 * 2  # of qwen3-moe
BATCH, PROMPT = 6, 7


def tokens(length, seed=0, rows=BATCH):
    return torch.randint(3, 1000, (rows, length), generator=torch.Generator().manual_seed(seed))


def plain(folder):
    """Weights begin where memory is aligned, as slots do: where a file is mapped they lie anywhere, and some kernels
    round otherwise there."""
    model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").requires_grad_(False)
    for weight in model.parameters():
        weight.data = weight.data.clone()
    return model


def steps(model, seed=0):
    """Logits of a prompt and of two decode steps."""
    first = model(tokens(PROMPT, seed), use_cache=True)
    found, cache = [first.logits], cache_of(first)
    for number in (1, 2):
        found.append(model(tokens(1, seed + number), **beside(model, cache)).logits)
    return torch.cat(found, 1)


@pytest.fixture(scope="module")
def qwen():
    return str(path("qwen3-moe"))


@pytest.fixture(scope="module")
def answers(qwen):
    return steps(plain(qwen))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_trained_family_answers_as_it_does_whole(family):
    """Few slots, so that prompts take turns; with a policy too, and what it generates."""
    whole = plain(path(family))
    expected, written = steps(whole), whole.generate(tokens(PROMPT), max_new_tokens=4)
    with lynx_moe.apply(whole, "priced:price=0.1") as run:
        decided = steps(whole)
    with lynx_moe.offload(path(family), resident="25%") as opened:
        assert opened.slots == tuple(count // 4 for count in opened.experts)
        assert torch.equal(steps(opened.model), expected)
        stats = opened.stats()
        assert stats.rounds > 0
        assert stats.loads > 0
        assert stats.hits > 0
        each = opened.bytes // sum(opened.slots)
        assert stats.bytes == each * stats.loads
        assert torch.equal(opened.model.generate(tokens(PROMPT), max_new_tokens=4), written)
        with lynx_moe.apply(opened.model, "priced:price=0.1") as mine:
            assert torch.equal(steps(opened.model), decided)
            assert mine.stats() == run.stats()
        assert len(opened.layers) == len(mine.layers) == len(opened.slots)


def test_a_policy_decides_before_experts_are_read(qwen):
    """In decode steps exactly those are asked for that it leaves, and no others."""
    with lynx_moe.offload(qwen, resident=24) as opened:
        asked = {}
        for policy in ("vanilla", "priced:price=0.1"):
            cache = cache_of(opened.model(tokens(PROMPT), use_cache=True))
            with lynx_moe.apply(opened.model, policy) as run:
                opened.reset_stats()
                for number in range(3):
                    opened.model(tokens(1, number), **beside(opened.model, cache))
                stats = opened.stats()
                asked[policy] = stats.loads + stats.hits
                assert asked[policy] == sum(layer.decode.after for layer in run.stats().layers)
        assert asked["priced:price=0.1"] < 0.8 * asked["vanilla"]


def test_what_is_in_memory_is_not_read_again_and_changes_nothing(qwen, answers):
    with lynx_moe.offload(qwen, resident="100%") as opened:
        assert opened.slots == opened.experts == (64,) * 4
        assert opened.bytes == 4 * 64 * EXPERT_BYTES
        for _ in range(2):
            assert torch.equal(steps(opened.model), answers)
        assert opened.stats().rounds == 0
        assert opened.stats().loads <= 4 * 64
        opened.reset_stats()
        steps(opened.model)
        assert (opened.stats().loads, opened.stats().bytes, opened.stats().seconds) == (0, 0, 0.0)
    with lynx_moe.offload(qwen, resident="0.003GiB") as opened:  # in all layers together
        assert opened.slots == (int(0.003 * 2**30 / EXPERT_BYTES / 4),) * 4
        assert torch.equal(steps(opened.model), answers)


def shards(source, folder):
    """The checkpoint in three files; an expert's parts lie in different ones."""
    tensors = load_file(Path(source) / "model.safetensors")
    shutil.copy(Path(source) / "config.json", folder)
    places = {name: f"model-{number % 3 + 1:05}-of-00003.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in places if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def test_shards_and_their_faults(qwen, answers, tmp_path):
    """A file that goes stays readable, one that is changed or fails ends the forward in a line that names it, and what
    is computed after a failure is right."""
    places = shards(qwen, tmp_path)
    opened = lynx_moe.offload(tmp_path, resident=16)
    assert torch.equal(steps(opened.model), answers)
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(os, "preadv", fail)
        with pytest.raises(
            ReadError, match=r"^expert \d+ of model.layers.0.mlp.experts in .*safetensors cannot be read"
        ):
            steps(opened.model, 5)
    assert torch.equal(steps(opened.model), answers)
    second = tmp_path / "model-00002-of-00003.safetensors"
    shutil.copy(second, tmp_path / "kept")
    second.unlink()
    steps(opened.model, 8)
    assert torch.equal(steps(opened.model), answers)
    third = tmp_path / "model-00003-of-00003.safetensors"
    whole = third.read_bytes()
    os.truncate(third, len(whole) // 2)
    with pytest.raises(ReadError, match="cannot be read: the file was changed after the model had been opened"):
        steps(opened.model, 9)
    opened.close()
    with pytest.raises(ReadError, match="cannot be read any more: it was closed; open the model again"):
        steps(opened.model, 10)
    with pytest.raises(ValueError, match=r"model-00002-of-00003.safetensors cannot be opened: No such file"):
        lynx_moe.offload(tmp_path, resident=16)
    (tmp_path / "kept").rename(second)
    with pytest.raises(ValueError, match=rf"model-00003-of-00003.safetensors is cut short: {len(whole) // 2} bytes of"):
        lynx_moe.offload(tmp_path, resident=16)
    third.write_bytes(whole)
    lost = next(name for name in places if places[name] == second.name)
    save_file({name: one for name, one in load_file(second).items() if name != lost}, second)
    with pytest.raises(
        ValueError, match=f"00002-of-00003.safetensors has no {lost}, which model.safetensors.index.json"
    ):
        lynx_moe.offload(tmp_path, resident=16)


def fail(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def without(source, folder, *lost):
    tensors = load_file(Path(source) / "model.safetensors")
    shutil.copy(Path(source) / "config.json", folder)
    save_file({name: one for name, one in tensors.items() if name not in lost}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("resident", "message"),
    [
        ("a few", "^resident='a few' must be a count of experts a layer"),
        (0, "^resident=0 must be above 0"),
        ("150%", "^resident='150%' must be above 0, and"),
        (2.5, "^resident=2.5 must be a count"),
        (7, "^resident=7 holds 7 of 64 experts a layer, fewer than the 8 that one row takes"),
        ("0.0001GiB", "^resident=0.0001GiB holds 1 of 64 experts a layer"),
    ],
)
def test_amounts_that_make_no_sense(qwen, resident, message):
    with pytest.raises(ValueError, match=message):
        lynx_moe.offload(qwen, resident=resident)


def test_folders_that_hold_no_such_model(qwen, tmp_path):
    with pytest.raises(ValueError, match=r"no folder of a model, with a config.json; give a local one"):
        lynx_moe.offload("Qwen/Qwen3-30B-A3B", resident="25%")
    dense = tmp_path / "dense"
    transformers.Qwen3Config(**COMMON).save_pretrained(dense)
    with pytest.raises(ValueError, match=r"has neither model.safetensors nor model.safetensors.index.json"):
        lynx_moe.offload(dense, resident="25%")
    (dense / "model.safetensors").write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(ValueError, match="is no safetensors file, or its head is damaged"):
        lynx_moe.offload(dense, resident="25%")
    save_file({"a": torch.zeros(1)}, dense / "model.safetensors")
    config = json.loads((dense / "config.json").read_text()) | {"architectures": ["Qwen3ForCausalLM"]}
    (dense / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="Qwen3ForCausalLM has no MoE layer"):
        lynx_moe.offload(dense, resident="25%")
    part = tmp_path / "part"
    part.mkdir()
    without(qwen, part, "model.layers.1.mlp.experts.5.up_proj.weight")
    with pytest.raises(ValueError, match=r"layers.1.mlp.experts.gate_up_proj: .* cannot be read one by one"):
        lynx_moe.offload(part, resident="25%")
    without(qwen, part, "model.norm.weight")
    with pytest.raises(ValueError, match=r"lacks 1 tensors of the model, model.norm.weight the first; fetch it again"):
        lynx_moe.offload(part, resident="25%")
    with pytest.raises(ValueError, match=r"is not that of the checkpoint's experts, .*: bfloat16; leave dtype out"):
        lynx_moe.offload(qwen, resident="25%", dtype="float32")


def test_experts_that_cannot_be_read_one_by_one_are_refused_by_name(tmp_path, monkeypatch):
    """Quantised ones, modules of their own, and those that transformers turns."""
    make(ARCHITECTURES["dbrx"]).save_pretrained(tmp_path / "dbrx")
    with pytest.raises(ValueError, match=r"experts of transformer.blocks.0.ffn.experts are modules of their own"):
        lynx_moe.offload(tmp_path / "dbrx", resident=2)
    model = make(ARCHITECTURES["gpt_oss"])
    model.save_pretrained(tmp_path / "gpt")
    with lynx_moe.offload(tmp_path / "gpt", resident=2) as opened:
        assert opened.slots == (2, 2)
    turning = WeightConverter("mlp.experts.down_proj", "mlp.experts.down_proj", [Transpose(1, 2)])
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda *_: [turning])
    with pytest.raises(
        ValueError, match=r"down_proj: experts that lie in the checkpoint as \[8, 32, 32\] cannot be read"
    ):
        lynx_moe.offload(tmp_path / "gpt", resident=2)
    config = json.loads((tmp_path / "gpt/config.json").read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "gpt/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"is quantised \(mxfp4\): offload reads experts in bfloat16"):
        lynx_moe.offload(tmp_path / "gpt", resident=2)


def test_what_needs_all_experts_at_once_is_refused(qwen, tmp_path):
    with lynx_moe.offload(qwen, resident=16) as opened:
        model = opened.model
        with pytest.raises(ValueError, match="an offloaded model has no gradients"):
            model(inputs_embeds=torch.zeros(1, 2, 128, dtype=model.dtype, requires_grad=True))
        with pytest.raises(ValueError, match="an offloaded model has no experts to save"):
            model.save_pretrained(tmp_path)
        model.set_experts_implementation("grouped_mm")
        with pytest.raises(AttributeError, match=r"its experts are offloaded, .* experts run as 'eager' then"):
            steps(model)


def run_little(*given):
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(root / one) for one in ("src", "tests/helpers"))}
    command = [sys.executable, root / "tests/helpers/little_offload.py", *given]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_memory_holds_the_slots_and_the_rest_of_the_model_while_it_opens_and_after(tmp_path):
    """288 MiB of experts under a limit at which the plain model ends."""
    sizes = {"hidden_size": 512, "moe_intermediate_size": 256, "num_hidden_layers": 6}
    sizes |= {name: 64 for name in COMMON if name.endswith("experts")}
    config = transformers.Qwen3MoeConfig(**{**COMMON, **sizes})
    transformers.Qwen3MoeForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size > 288 * 2**20
    done = run_little(tmp_path, "150", "8")
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told["tokens"]) == 10
    assert told["slots"] == 36 * 2**20
    most = told["most"]
    assert 0 < most["RssShmem"] <= 37
    assert most["RssAnon"] < 72
    refused = run_little(tmp_path, "150")
    assert refused.returncode != 0
    assert "Cannot allocate memory" in refused.stderr
