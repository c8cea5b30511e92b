"""`lynx-moe eval`: any lm-evaluation-harness task under several policies, on the same items, in one engine.

The record is a JSONL file: a line of settings, then a line per policy and task. It is written after every policy, so an
interrupted run goes on where it stopped. Its first policy is the baseline of all differences.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lynx_moe.control.options import GuardOptions
from lynx_moe.lab.evaluation import arguments, harness, harness_results, harness_transformers, harness_vllm
from lynx_moe.lab.shared import lines, record, scores
from lynx_moe.lab.shared.engine import in_own_process
from lynx_moe.policies import make_policy

Record = dict[str, Any]
GIVEN = ("pretrained", "additional_config", "max_num_seqs", "batch_size", "max_batch_size", "data_parallel_size")
GUARDED = " guarded"  # ends the name of a policy that a quality guard watches
ENGINES = {"vllm": harness_vllm.open_model, "transformers": harness_transformers.open_model}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a result besides the policy.

    tasks        names of harness tasks, groups or tags, task files, folders of task files.
    limit        items per task; None: all of them.
    concurrency  requests that run at once: vLLM's max_num_seqs, or the size of a batch on transformers.
    mix          "heterogeneous": all tasks share the batches; "homogeneous": task after task.
    num_fewshot  examples before each question; None: the task's own number.
    chat         whether prompts go through the model's chat template.
    engine       what generates: "vllm" or "transformers".
    guard        options of a quality guard: policies that change something run once more under it; None: no guard.
    model_args   `name=value,name=value` or a JSON object for the harness's class of the engine and the engine itself,
                 such as tensor_parallel_size=4.
    include_path       a folder of task files, beside the harness's own.
    trust_remote_code  True: code that comes with the model is run; None: it never is, and nobody is asked.
    """

    model: str
    tasks: tuple[str, ...]
    limit: int | None = None
    concurrency: int = 16
    mix: str = "heterogeneous"
    num_fewshot: int | None = None
    chat: bool = False
    model_args: str = ""
    engine: str = "vllm"
    guard: dict[str, Any] | None = None
    include_path: str | None = None
    trust_remote_code: bool | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"engine {self.engine!r} is not one of {', '.join(ENGINES)}")
        if self.mix not in harness.MIXES:
            raise ValueError(f"mix {self.mix!r} is not one of {', '.join(harness.MIXES)}")
        if self.concurrency < 2:
            raise ValueError(f"concurrency={self.concurrency}: a request alone shares with nobody; use 2 or more")
        if not self.tasks:
            raise ValueError("no task is named; lynx_testbed needs no data, `lm_eval ls tasks` shows all others")
        if self.guard is not None:
            if self.engine != "vllm":
                raise ValueError("--guard needs --engine vllm: the transformers engine has no quality guard")
            GuardOptions.of(self.guard)
        arguments.read(self.model_args, GIVEN)
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ValueError(f"--include-path {self.include_path} is no folder; name one that holds task files (.yaml)")


def evaluate(
    settings: Settings,
    policies: Sequence[str],
    path: Path,
    *,
    allow_code: bool = False,
    advance: Callable[[str], None] = lambda message: None,
) -> Record:
    """Evaluates the policies that the record at `path` lacks, and returns the whole of it.

    Raises ValueError before anything is loaded for a bad policy, task or setting, and for a record of other settings.
    """
    whole, missing = _plan(settings, policies, path)
    if not missing:
        return whole
    tasks = harness.load_tasks(settings.tasks, settings.include_path, allow_code=allow_code)
    advance("loading the model")
    lm = ENGINES[settings.engine](
        settings.model,
        concurrency=settings.concurrency,
        mix=settings.mix,
        vision=any(getattr(task, "MULTIMODAL", False) for task in tasks.values()),
        options={"trust_remote_code": bool(settings.trust_remote_code), **arguments.read(settings.model_args)},
    )
    # each is set once before any runs, so that one that does not fit this model is refused now
    full = {arm: lm.set_policy(arm.removesuffix(GUARDED)) for arm in missing}
    for number, arm in enumerate(missing, 1):
        guard = settings.guard if arm.endswith(GUARDED) else None
        spec = full[arm] + (GUARDED if guard else "")
        advance(f"policy {number} of {len(missing)}: {spec}")
        lm.set_guard(None)
        lm.set_policy(arm.removesuffix(GUARDED))
        lm.set_guard(guard)
        start = time.perf_counter()
        results = harness.run(
            lm,
            tasks,
            limit=settings.limit,
            num_fewshot=settings.num_fewshot,
            chat=settings.chat,
            allow_code=allow_code,
        )
        seconds = round(time.perf_counter() - start, 1)
        new = [
            line | {"seconds": seconds}
            for line in harness_results.lines(arm, spec, results, lm.parts, lm.lengths, lm.sampled)
        ]
        whole["results"] = scores.compare([*whole["results"], *new])
        lines.save(whole, path)
    return whole


def apart(settings: Settings, policies: Sequence[str], path: Path, *, allow_code: bool = False) -> Record:
    """`evaluate` in a process of its own, with the environment that vLLM wants; prints how far it is."""
    whole, missing = _plan(settings, policies, path)
    if not missing:
        return whole
    return in_own_process(evaluate, settings, policies, path, allow_code=allow_code, advance=print)


def _plan(settings: Settings, policies: Sequence[str], path: Path) -> tuple[Record, list[str]]:
    """The record at `path`, or an empty one, and the policies that it lacks. Raises as `evaluate` does."""
    specs = lines.specs_of(policies)
    if settings.guard is not None:
        specs += [spec + GUARDED for spec in specs if not make_policy(spec).is_identity]
    versions = record.environment()["versions"] | {"lm-eval": metadata.version("lm-eval")}
    whole = lines.begin(path, "evaluation", asdict(settings) | {"versions": versions})
    return whole, [spec for spec in specs if spec not in {line["policy"] for line in whole["results"]}]
