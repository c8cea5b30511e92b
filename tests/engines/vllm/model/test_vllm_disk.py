"""Experts on a disk, on real engines: the same answers, less memory, and clear ends."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tiny_vllm import COMMON, engine, generate, model_of, prompts, tokens
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

from lynx_moe.engines import vllm as plugin
from lynx_moe.engines.disk.amount import Amount
from lynx_moe.engines.disk.source import ReadError
from lynx_moe.engines.shared.refusals import Refusal
from lynx_moe.engines.vllm.launch import disk
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.model import paging
from lynx_moe.engines.vllm.model.paged import Paged
from lynx_moe.engines.vllm.step.plan import active
from lynx_moe.engines.vllm.tell.samples import samples
from lynx_moe.testbed import path

E, TOP_K, LAYERS = 64, 8, 4
MODEL = str(path("qwen3-moe"))
REQUESTS = prompts(10, 0)


def config(**options: Any) -> dict[str, Any]:
    return {"lynx_moe": {"policy": "vanilla", "shadow": 0, **options}}


def answers(llm: Any) -> tuple[Any, Any]:
    """Tokens, and all that is told of their logits."""
    outputs = generate(llm, REQUESTS, logprobs=3)
    told = [[sorted((k, v.logprob) for k, v in step.items()) for step in out.outputs[0].logprobs] for out in outputs]
    return tokens(outputs), told


def refused(words: str, given: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match=words), engine(MODEL, additional_config=given):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def plain() -> tuple[Any, Any]:
    with engine(MODEL, additional_config=config()) as llm:
        return answers(llm)


def test_all_resident_is_plain_vllm_bit_for_bit_and_leaves_a_file(folder: Path, plain: tuple[Any, Any]) -> None:
    with engine(MODEL, additional_config=config(experts_resident="100%", experts_folder=str(folder))) as llm:
        assert answers(llm) == plain
        told = plugin.stats().disk
    assert told is not None
    assert (told["slots"], told["experts"]) == (LAYERS * E, LAYERS * E)
    assert sum(sums["loads"] for sums in told["steps"].values()) <= LAYERS * E
    (file,) = folder.iterdir()
    assert file.name.startswith("qwen3-moe-")


def test_few_resident_reuse_the_file_answer_alike_and_are_told(folder: Path, plain: tuple[Any, Any]) -> None:
    """The last thing is a disk that fails in the middle: the step ends with its words, and not with tokens."""
    (file,) = folder.iterdir()
    made, slots = file.stat().st_mtime_ns, 24
    given = config(experts_resident=slots, experts_folder=str(folder), policy="priced")
    with engine(MODEL, additional_config=given) as llm:
        plugin.set_policy("vanilla")
        plugin.reset_stats()
        found = answers(llm)
        agree = [ours == theirs for ours, theirs in zip(found[0], plain[0], strict=True)]
        assert sum(agree) >= 0.7 * len(agree)  # steps in turns round otherwise
        told = plugin.stats().disk
        assert told is not None
        decode = told["steps"]["decode"]
        assert decode["rounds"] > 0
        assert decode["loads"] > 0
        assert decode["hits"] > 0
        each = told["slot_bytes"] // told["slots"]
        assert all(sums["bytes"] == each * sums["loads"] for sums in told["steps"].values())
        assert told["slots"] == LAYERS * slots
        needed = sum(sums["loads"] + sums["hits"] for sums in told["steps"].values())
        seen = {(name, *labels): value for name, labels, value in samples(active())}
        assert seen["lynx_moe_expert_slots",] == LAYERS * slots
        assert seen["lynx_moe_experts_read", "decode"] == decode["loads"]
        assert seen["lynx_moe_experts_wait_seconds", "decode"] == decode["seconds"] > 0
        assert ("lynx_moe_experts_read", "idle") not in seen

        plugin.set_policy("priced:price=0.1")
        plugin.reset_stats()
        generate(llm, REQUESTS)
        fewer = plugin.stats().disk
        assert fewer is not None
        assert sum(sums["loads"] + sums["hits"] for sums in fewer["steps"].values()) < 0.9 * needed

        weight = next(weight for name, weight in model_of(llm).named_parameters() if name.endswith("w13_weight"))
        with pytest.raises(ValueError, match="weights cannot be loaded anew while experts_resident is on"):
            weight.weight_loader(weight, weight[0], "w1", shard_id="w1", expert_id=0)

        plugin.set_policy("vanilla")
        with pytest.MonkeyPatch.context() as broken:
            broken.setattr(os, "preadv", _fail)
            with pytest.raises(ReadError, match=r"expert \d+ of model.layers.\d.* in .*qwen3-moe-.* cannot be read"):
                generate(llm, prompts(10, 1))
    assert file.stat().st_mtime_ns == made
    assert list(folder.iterdir()) == [file]


def _fail(*_: object) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_model_that_fills_its_experts_by_itself_keeps_no_file(tmp_path: Path) -> None:
    """gpt-oss: with biases, whose rows follow their experts into the slots."""
    with engine(str(path("gpt-oss")), additional_config=config()) as llm:
        expected = answers(llm)
    with engine(
        str(path("gpt-oss")), additional_config=config(experts_resident=32, experts_folder=str(tmp_path))
    ) as llm:
        assert answers(llm) == expected
        assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_ends_the_start_in_one_line(folder: Path) -> None:
    (file,) = folder.iterdir()
    os.truncate(file, file.stat().st_size - 10)
    given = config(experts_resident=8, experts_folder=str(folder))
    with (
        pytest.raises(Refusal, match=r"^lynx_moe: .* is no expert file, or not whole"),
        engine(MODEL, additional_config=given),
    ):
        pass
    file.unlink()


def test_too_few_slots_and_a_folder_that_takes_no_file_end_the_start(tmp_path: Path) -> None:
    given = config(experts_resident=7, experts_folder=str(tmp_path))
    with (
        pytest.raises(Refusal, match="experts_resident=7 holds 7 of 64 experts a layer, fewer than the 8 that one row"),
        engine(MODEL, additional_config=given),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    given = config(experts_resident=8, experts_folder=str(tmp_path / "file"))
    with (
        pytest.raises(Refusal, match=r"lynx_moe: the experts' file in .*/file failed: .*File exists"),
        engine(MODEL, additional_config=given),
    ):
        pass


def test_memory_stays_below_the_experts_size_while_they_load_and_after(tmp_path: Path) -> None:
    """768 MiB of random experts, under a limit at which plain vLLM ends: these beside what it takes otherwise."""
    special = {"num_experts": 64, "hidden_size": 512, "moe_intermediate_size": 256, "num_hidden_layers": 16}
    transformers.Qwen3MoeConfig(**{**COMMON, **special}, architectures=["Qwen3MoeForCausalLM"]).save_pretrained(
        tmp_path
    )
    options = json.dumps({"experts_resident": 8, "experts_folder": str(tmp_path / "experts")})
    root = Path(__file__).parents[4]
    paths = os.pathsep.join(str(root / folder) for folder in ("src", "tests/helpers"))
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_CPU_KVCACHE_SPACE"} | {"PYTHONPATH": paths}
    command = [sys.executable, root / "tests/helpers/little_memory.py", tmp_path, "1500", options, "dummy"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert all(told["tokens"])
    assert told["most"]["RssAnon"] < 768
    assert list((tmp_path / "experts").iterdir()) == []  # nobody could know random weights again


def engine_config(**changed: Any) -> Any:
    sizes = {"world_size": 1, "data_parallel_size": 1}
    parallel = SimpleNamespace(**{name: changed.pop(name, size) for name, size in sizes.items()})
    offload = SimpleNamespace(offload_backend="auto", prefetch=SimpleNamespace(offload_group_size=0))
    offload.offload_backend = changed.pop("backend", "auto")
    offload.prefetch.offload_group_size = changed.pop("group", 0)
    given = {"parallel_config": parallel, "lora_config": None, "offload_config": offload, **changed}
    return SimpleNamespace(**given)


def test_what_cannot_lie_on_a_disk_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    assert disk.refusal(engine_config()) is None
    assert "has 2; use tensor_parallel_size=1" in (disk.refusal(engine_config(world_size=2)) or "")
    assert "here are 2; use data_parallel_size=1" in (disk.refusal(engine_config(data_parallel_size=2)) or "")
    assert "LoRA" in (disk.refusal(engine_config(lora_config=object())) or "")
    monkeypatch.setattr(current_platform, "is_cpu", lambda: False)
    assert "--cpu-offload-params experts" in (disk.refusal(engine_config()) or "")


@pytest.mark.parametrize(
    ("backend", "group", "warned"), [("auto", 0, 0), ("auto", 2, 1), ("prefetch", 0, 1), ("uva", 2, 0)]
)
def test_prefetching_whole_layers_is_warned_of(backend: str, group: int, warned: bool) -> None:
    found = disk.warning(engine_config(backend=backend, group=group))
    assert (found is not None) == warned
    assert disk.warning(SimpleNamespace()) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts_resident": "a few"}, "experts_resident='a few' must be a count of experts a layer"),
        ({"experts_resident": 0}, "must be above 0"),
        ({"experts_folder": "/tmp"}, "experts_folder='/tmp' holds experts on a disk; say experts_resident"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(policy="priced", **options)


def test_other_experts_are_refused_by_name() -> None:
    """Quantised ones: vLLM's own kernels for them want AMX here, so that no engine is built."""
    layer = torch.nn.Module()
    layer.__class__ = type("Layer", (RoutedExperts,), {})
    layer.layer_name, layer.quant_method = "model.layers.3.mlp.experts", object()
    paged = Paged(Amount.of(8), Path(), SimpleNamespace(model_config=None, load_config=None))
    with pytest.raises(ValueError, match=r"experts of model.layers.3.mlp.experts are of object, and only unquantised"):
        paging.fit(paged, torch.nn.ModuleList([layer]))
    paging.fit(None, torch.nn.ModuleList([layer]))
