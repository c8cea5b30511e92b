"""`python tests/timing/time_sglang_step.py SHAPE [BATCH]`: where a decode step of SGLang's goes, by policy, on a CPU.

Milliseconds of a pass: whole, in its routers with what chooses experts, in its experts. Policies take turns. In the
environment of `make sglang-setup`; SHAPE is a folder that `lynx-moe load qwen3-30b` writes.
"""

import json
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]
POLICIES, ROUNDS, TOKENS = ("vanilla", "priced", "lynx"), 6, 32
TOPK, NATIVE = "sglang.srt.layers.moe.topk", "sglang.srt.layers.moe.fused_moe_native"
PARTS = {"routers": f"{TOPK}.select_experts", "experts": f"{NATIVE}.moe_forward_native"}
seconds: dict[str, Counter[str]] = defaultdict(Counter)
now: list[str] = []  # the policy, while a pass decodes


def timed(part: str) -> Callable[..., Any]:
    def hook(original: Any, *args: Any, **given: Any) -> Any:
        start = time.perf_counter()
        result = original(*args, **given)
        if now:
            seconds[now[0]][part] += time.perf_counter() - start
        return result

    return hook


def forward(original: Any, runner: Any, batch: Any, *args: Any, **given: Any) -> Any:
    from lynx_moe.engines.sglang.step.plan import active

    plan = active()
    if plan is None or batch.forward_mode.name != "DECODE":
        return original(runner, batch, *args, **given)
    now[:], start = [plan.named], time.perf_counter()
    result = original(runner, batch, *args, **given)
    seconds[plan.named].update({"whole": time.perf_counter() - start, "passes": 1})
    now.clear()
    found = {
        name: {key: round(1e3 * s / sums["passes"], 2) for key, s in sums.items()} for name, sums in seconds.items()
    }
    Path(os.environ["SGLANG_STEP"]).write_text(json.dumps(found))
    return result


def register() -> None:
    """The entry point, in every process of SGLang's."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register("sglang.srt.model_executor.model_runner.ModelRunner.forward", forward, HookType.AROUND)
    for part, target in PARTS.items():
        HookRegistry.register(target, timed(part), HookType.AROUND)


def main(shape: str, batch: int) -> None:
    import sglang_here

    sglang_here.prepare()
    with tempfile.TemporaryDirectory() as folder:
        info = Path(folder) / "sglang_step-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang_step\nVersion: 0\n")
        (info / "entry_points.txt").write_text("[sglang.srt.plugins]\nsglang_step = time_sglang_step:register\n")
        os.environ["PYTHONPATH"] = os.pathsep.join((folder, str(HERE), os.environ["PYTHONPATH"]))
        sys.path.insert(0, folder)
        os.environ |= {"SGLANG_STEP": f"{folder}/found.json", "LYNX_MOE_SGLANG": '{"policy": "vanilla"}'}
        import sglang

        from lynx_moe.engines.sglang import switch

        arguments = sglang_here.ARGUMENTS | {"dtype": "bfloat16"}
        engine = sglang.Engine(model_path=shape, log_level="error", grammar_backend="none", **arguments)
        rng = random.Random(0)
        for _ in range(ROUNDS):
            for policy in POLICIES:
                switch(engine, policy)
                prompts = [[rng.randrange(200) for _ in range(16)] for _ in range(batch)]
                engine.generate(input_ids=prompts, sampling_params={"max_new_tokens": TOKENS, "ignore_eos": True})
        for policy, parts in json.loads(Path(os.environ["SGLANG_STEP"]).read_text()).items():
            print(policy, parts, flush=True)
        engine.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1)
