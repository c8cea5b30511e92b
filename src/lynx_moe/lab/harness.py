"""lm-evaluation-harness with its vLLM model, of which this file decides one thing: which requests share a batch.

The harness hands over the generation requests of all tasks at once. They go to the engine in a random order (seed 0),
which keeps `max_num_seqs` of them running until none is left. The harness's own order, by length, would put like beside
like. All tasks together are heterogeneous batches; task after task, homogeneous ones.
"""

import difflib
import logging
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

from lynx_moe.engines.vllm.launch import name_vllm
from lynx_moe.lab.engine import import_vllm

READ_ONLY = {"loglikelihood", "loglikelihood_rolling", "multiple_choice"}
MIXES = ("homogeneous", "heterogeneous")


def task_manager(names: Sequence[str]) -> Any:
    """The harness's index of tasks: the testbed's, and the harness's own unless all names are the testbed's."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(f"lm-evaluation-harness cannot be imported ({error}); pip install 'lynx-moe[eval]'") from None
    from lynx_moe.testbed.harness import FOLDER

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=FOLDER, include_defaults=False)
    known = set(names) <= set(manager.all_tasks)
    return manager if known else TaskManager(include_path=FOLDER)  # reading its 14,000 files takes seconds


def load_tasks(names: Sequence[str], *, allow_code: bool) -> dict[str, Any]:
    """The harness's task objects by name; groups and tags give all their tasks. Data sets are fetched here.

    Raises ValueError for an unknown name, a data set that cannot be had, tasks that generate nothing, and a task that
    runs written code unasked.
    """
    manager = task_manager(names)
    for name in names:
        if name not in manager.all_tasks:
            near = ", ".join(difflib.get_close_matches(name, manager.all_tasks, n=3)) or "nothing"
            raise ValueError(f"unknown task {name!r}; near it: {near}; `lm_eval ls tasks` shows all")
    try:
        tasks: dict[str, Any] = manager.load(list(names))["tasks"]
    except Exception as error:  # whatever the tasks' own code and the hub raise
        raise ValueError(f"tasks {', '.join(names)} cannot be loaded: {type(error).__name__}: {error}") from error
    if {getattr(task, "OUTPUT_TYPE", None) for task in tasks.values()} <= READ_ONLY:
        raise ValueError(
            f"{', '.join(names)} only reads: policies act on decode steps; take a task that generates text"
        )
    unsafe = [name for name, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)]
    if unsafe and not allow_code:
        raise ValueError(f"{', '.join(unsafe)} runs code that the model writes; add --allow-code in a sandbox of yours")
    return tasks


class Batches:
    """What is put before the harness's vLLM class. `parts` holds, for each call of the engine so far, the names of the
    tasks in its batches and the plugin's statistics of it, one dictionary per worker."""

    mix: str
    parts: list[tuple[list[str], list[dict[str, Any]]]]
    model: Any

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        generate: Callable[..., list[str]] = super().generate_until  # type: ignore[misc]
        names = list(dict.fromkeys(request.task_name for request in requests))
        answers: list[str] = [""] * len(requests)
        for group in [names] if self.mix == "heterogeneous" else [[name] for name in names]:
            places = [place for place, request in enumerate(requests) if request.task_name in group]
            self.model.collective_rpc("lynx_reset_stats")
            written = generate([requests[place] for place in places], disable_tqdm=True)
            for place, answer in zip(places, written, strict=True):
                answers[place] = answer
            self.parts.append((group, self.model.collective_rpc("lynx_stats")))
        return answers


class Shuffled:
    """A `vllm.LLM` that takes up its prompts in a random order, the same one for as many prompts."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llm, name)

    def generate(self, prompts: Sequence[Any], sampling_params: Any = None, **options: Any) -> list[Any]:
        order = random.Random(0).sample(range(len(prompts)), len(prompts))
        params = [sampling_params[i] for i in order] if isinstance(sampling_params, list) else sampling_params
        outputs = self.llm.generate([prompts[i] for i in order], sampling_params=params, **options)
        back = dict(zip(order, outputs, strict=True))
        return [back[i] for i in range(len(prompts))]


def open_model(model: str, *, concurrency: int, mix: str, vision: bool, options: dict[str, Any]) -> Any:
    """The harness's model of one vLLM engine: eager, policy `vanilla`; `options` go to the harness's class and vLLM."""
    import_vllm()
    name_vllm()  # the harness looks up its version
    try:
        if vision:
            from lm_eval.models.vllm_vlms import VLLM_VLM as Base
        else:
            from lm_eval.models.vllm_causallms import VLLM as Base
    except ImportError as error:
        raise ValueError(f"the harness's vLLM model cannot be imported: {error}; install what it lacks") from None
    lm = type("Served", (Batches, Base), {})(
        pretrained=model,
        max_num_seqs=concurrency,
        additional_config={"lynx_moe": {"policy": "vanilla", "log_every": 0}},
        **{"enforce_eager": True, "use_tqdm_on_load": False, **options},
    )
    lm.mix, lm.parts, lm.model = mix, [], Shuffled(lm.model)
    return lm


def run(
    lm: Any, tasks: dict[str, Any], *, limit: int | None, num_fewshot: int | None, chat: bool, allow_code: bool
) -> dict[str, Any]:
    """The harness's results of all tasks, with samples. Prompts are computed anew: no policy finds another's cache."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from tqdm import tqdm  # type: ignore[import-untyped]

    lm.model.reset_prefix_cache()
    lm.parts = []
    with patch("lm_eval.api.task.tqdm", partial(tqdm, disable=True)):  # a bar per task, over in milliseconds
        results: dict[str, Any] = simple_evaluate(
            model=lm,
            tasks=list(tasks.values()),
            task_manager=TaskManager(include_defaults=False),  # the tasks are loaded; no search for them again
            limit=limit,
            num_fewshot=num_fewshot,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            confirm_run_unsafe_code=allow_code,
            bootstrap_iters=1000,
        )
    return results
