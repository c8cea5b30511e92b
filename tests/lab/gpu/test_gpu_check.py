"""`make gpu-check` without a GPU: every step runs in its dry form, and what the records are turned into is right."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from lynx_moe.lab.gpu import report, steps
from lynx_moe.lab.gpu.checks import verdict
from lynx_moe.lab.shared import record

DRY = (
    *("copy", "kernels", "prices", "decision", "trained"),
    *("transformers-olmoe-1b-7b", "vllm-qwen3-30b", "uva", "speculation"),
)


def check(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lynx_moe.lab.gpu", "--out", str(out), *more]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_every_step_runs_dry_and_is_not_done_again(tmp_path: Path) -> None:
    first = check(tmp_path, "--dry-run", "--only", ",".join(DRY))
    assert first.returncode == 0, first.stdout[-4000:] + first.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert set(found) == set(DRY)
    assert all(step["dry"] and step["result"] for step in found.values())
    assert found["kernels"]["result"]["passed"] == 2
    assert found["prices"]["result"]["steps"] == 16
    assert min(found["prices"]["result"].values()) > 0
    for name in DRY[5:8]:
        by_policy = {row["policy"]: row for row in found[name]["result"]["summary"]}
        assert by_policy["lynx"]["after"] < by_policy["lynx"]["before"]
        assert by_policy["vanilla"]["after"] == by_policy["vanilla"]["before"]
    drafts = {row["policy"]: row for row in found["speculation"]["result"]["verification"]}
    assert {drafts[name]["rows"] for name in ("vanilla", "priced", "acceptmoe")} == {8}
    assert drafts["no drafts"]["rows"] == 2
    assert drafts["vanilla"]["after"] == drafts["vanilla"]["before"] > drafts["no drafts"]["before"]
    assert drafts["acceptmoe"]["after"] < drafts["acceptmoe"]["before"]
    before = (tmp_path / "decision.json").stat().st_mtime_ns
    said: list[str] = []
    steps.run(["copy", "decision"], tmp_path, dry=True, tell=said.append)
    assert said == ["copy: done before", "decision: done before"]
    assert (tmp_path / "decision.json").stat().st_mtime_ns == before


def test_without_a_gpu_only_the_dry_run_is_allowed(tmp_path: Path) -> None:
    run = check(tmp_path)
    assert run.returncode == 1
    assert "torch sees no GPU; --dry-run tries every step on the CPU" in run.stderr


def test_a_step_that_fails_costs_the_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def child(name: str, path: Path, log: Path, dry: bool, limit: int, apart: bool) -> str | None:
        log.write_text(f"{name} says why")
        if name == "copy":
            return f"stopped after {limit} s"
        record.save({"kind": "gpu-step", "dry": dry, "result": {"passed": 1}}, path)
        return None

    monkeypatch.setattr(steps, "_in_child", child)
    for _ in range(2):  # what failed is tried again
        found = steps.run(["copy", "kernels"], tmp_path, dry=True, tell=str)
        assert found["copy"]["failed"] == "stopped after 120 s"
        assert found["copy"]["log"] == "copy says why"
        assert found["kernels"]["result"] == {"passed": 1}
    console = Console(width=100, record=True, file=sys.stderr)
    report.show(found, console)
    assert "stopped after 120 s" in console.export_text()
    with pytest.raises(ValueError, match="unknown step nothing; allowed: copy, kernels"):
        steps.run(["nothing"], tmp_path, dry=True, tell=str)


def test_where_graphs_cannot_be_swapped_shapes_get_an_engine_per_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, swap = [], False

    def child(name: str, path: Path, log: Path, dry: bool, limit: int, apart: bool) -> str | None:
        calls.append((name, apart))
        log.write_text("")
        record.save({"kind": "gpu-step", "dry": dry, "result": {"swap": swap, "modes": {}}}, path)
        return "exit code 1" if name.startswith("vllm") and not apart else None

    monkeypatch.setattr(steps, "_in_child", child)
    names = ["vllm-olmoe-1b-7b", "copy", "modes"]  # what is not timed comes first, whatever the order
    assert list(steps.run(names, tmp_path, dry=True, tell=str)) == names
    assert calls == [("modes", False), ("vllm-olmoe-1b-7b", True), ("copy", False)]
    calls, swap = [], True
    (tmp_path / "other").mkdir()
    for _ in range(2):  # one that failed is tried again with an engine per policy
        steps.run(names, tmp_path / "other", dry=True, tell=str)
    assert [apart for name, apart in calls if name.startswith("vllm")] == [False, True]


def test_a_stopped_step_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a child has started ends with it."""
    note = tmp_path / "note"
    script = f"import subprocess; subprocess.Popen(['sh', '-c', 'sleep 3; touch {note}']).wait()"
    monkeypatch.setattr(steps, "command_of", lambda *_: [sys.executable, "-c", script])
    assert steps._in_child("copy", tmp_path / "copy.json", tmp_path / "copy.log", True, 1, False) == "stopped after 1 s"
    time.sleep(3)
    assert not note.exists()


def engine_said(*numbers: int, after: float = 20.0) -> dict:
    return {"tokens": [[[number] * 3 for number in numbers]], "experts": (40.0, after)}


def test_what_engines_say_is_judged() -> None:
    plain, priced, failed = engine_said(1, 2), engine_said(3, 4), {"failed": "RuntimeError: no"}
    swapped = {"vanilla": plain["tokens"], "priced": priced["tokens"]}
    good = verdict.judge(plain, engine_said(1, 2), priced, swapped)
    assert good == {"plain": "yes", "identical": "yes", "priced": "yes: 20.0 of 40.0 experts", "swap": "yes"}
    parted = verdict.judge(plain, engine_said(1, 5), engine_said(3, 4, after=39.8), swapped)
    assert parted["identical"] == parted["swap"] == "NO: batch 0, request 1 differs from token 0 on"
    assert parted["priced"] == "NO: 39.8 of 40.0 experts"
    other = verdict.judge(plain, engine_said(1, 2), engine_said(3, 5), swapped)
    assert other["swap"] == "NO: batch 0, request 1 differs from token 0 on"
    crashed = verdict.judge(failed, engine_said(1, 2), failed, failed)
    assert crashed == dict.fromkeys(crashed, "RuntimeError: no") | {"identical": "nothing to compare with"}
    rest = [verdict.judge(plain, failed, failed, swapped), verdict.judge(plain, plain, priced, {})]
    assert [each["swap"] for each in rest] == ["nothing to compare with", "not tried"]
    may = [verdict.may_swap(each) for each in (good, parted, other, crashed, *rest)]
    assert may == [True, True, False, False, True, True]


def test_the_fit_finds_what_a_step_is_made_of() -> None:
    points = [(e, r, 2.0 + 0.25 * e + 0.01 * r) for e, r in ((8, 1), (22, 4), (35, 8), (48, 16), (31, 16))]
    found = report.fit(points)
    assert [found[name] for name in "abc"] == pytest.approx([2.0, 0.25, 0.01])
    assert found["r2"] == pytest.approx(1)
    assert report.fit([(e, r, t + 5 * (n % 2)) for n, (e, r, t) in enumerate(points)])["r2"] < 0.9


def test_the_share_of_the_ideal_saving_is_of_the_bytes_no_longer_read() -> None:
    rows = [
        {"batch": batch, "policy": policy, "tpot_ms": tpot, "tokens_per_s": 1.0, "speedup": 1.0}
        for batch, policy, tpot in ((1, "vanilla", 3.0), (1, "lynx", 3.0), (16, "vanilla", 10.0), (16, "lynx", 7.0))
    ]
    result = {
        "title": "a shape",
        "layers": 2,
        "top_k": 8,
        "expert_bytes": 1e6,
        "summary": rows,
        "experts": {"lynx": {"16": {"before": 50.0, "after": 30.0}}},
        "kernels_us": {},
    }
    saved = report.with_savings(result, bytes_per_s=1e10)  # 2 layers x 20 experts x 1 MB: 4 ms
    shares = [row["ideal_share"] for row in saved["summary"]]
    assert shares == [None, None, None, pytest.approx(0.75)]
    assert [row["after"] for row in saved["summary"]] == [8, 8, 50, 30]
    assert saved["fit"]["n"] == 4


@pytest.mark.vllm
def test_experts_that_are_not_in_the_hosts_memory_end_the_step() -> None:
    """Nothing offloaded, less than all, by copies in place of uva, or packed anew on the GPU."""
    from vllm.model_executor.offloader import base
    from vllm.model_executor.offloader.uva import UVAOffloader

    from lynx_moe.lab.gpu.checks import uva

    shape = uva.SHAPES[uva.SHAPE]
    needed = int(uva.all_bytes(shape))
    assert needed == 48 * 128 * 3 * 2048 * 768 * 2
    options = uva.offloading(shape)
    assert options["cpu_offload_gb"] * 2**30 > needed
    before = base.get_offloader()
    try:
        base.set_offloader(None)
        with pytest.raises(RuntimeError, match=r"vLLM offloaded 0 of 5.8e\+10 bytes of experts by NoopOffloader"):
            uva.placed(shape, 0)
        offloader = UVAOffloader(2 * needed, options["cpu_offload_params"])
        base.set_offloader(offloader)
        offloader.uva_offloading, offloader.cpu_offload_bytes = True, needed - 1
        with pytest.raises(RuntimeError, match=r"of 5.8e\+10 bytes of experts by UVAOffloader"):
            uva.placed(shape, 0)
        offloader.cpu_offload_bytes = needed
        with pytest.raises(RuntimeError, match=r"so the 5.8e\+10 bytes of experts do as well"):
            uva.placed(shape, needed + 2 * uva.KV_BYTES)
        assert uva.placed(shape, 2**30) == {"host_bytes": needed, "device_bytes": 2**30}
        offloader.uva_offloading = False
        with pytest.raises(RuntimeError, match="by UVAOffloader"):
            uva.placed(shape, 0)
    finally:
        base.set_offloader(before)
