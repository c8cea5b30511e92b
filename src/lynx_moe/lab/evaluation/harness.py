"""lm-evaluation-harness with a model of ours, of which this file decides one thing: which requests share a batch.

The harness hands over the generation requests of all tasks at once. They go to the engine in a random order (seed 0).
The harness's own order, by length, would put like beside like. All tasks together are heterogeneous batches; task after
task, homogeneous ones. The engines are in `harness_vllm.py` and `harness_transformers.py`.
"""

import contextlib
import difflib
import logging
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

READ_ONLY = {"loglikelihood", "loglikelihood_rolling", "multiple_choice"}
MIXES = ("homogeneous", "heterogeneous")


def task_manager(names: Sequence[str], include_path: str | None = None) -> Any:
    """The harness's index of tasks: the testbed's, the user's, and the harness's own unless none is named."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(
            f"lm-evaluation-harness cannot be imported ({error}); in a clone of lynx-moe: pip install '.[eval]'"
        ) from None
    from lynx_moe.testbed.harness import FOLDER

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folders = [FOLDER, *([include_path] if include_path else [])]
    manager = TaskManager(include_path=folders, include_defaults=False)
    known = all(name in manager.all_tasks or Path(name).is_file() for name in names)
    return manager if known else TaskManager(include_path=folders)  # reading its 14,000 files takes seconds


def load_tasks(names: Sequence[str], include_path: str | None = None, *, allow_code: bool) -> dict[str, Any]:
    """The harness's task objects by name; groups and tags give all their tasks, and so do task files and folders of
    them. Data sets are fetched here.

    Raises ValueError for an unknown name, a data set that cannot be had, tasks that generate nothing, and a task that
    runs written code unasked.
    """
    names = [file for name in names for file in task_files(name)]
    manager = task_manager(names, include_path)
    for name in names:
        if name not in manager.all_tasks and not Path(name).is_file():
            near = ", ".join(difflib.get_close_matches(name, manager.all_tasks, n=3)) or "nothing"
            raise ValueError(f"unknown task {name!r}; near it: {near}; `lm_eval ls tasks` shows all")
    tasks: dict[str, Any] = {}
    for name in names:
        try:
            tasks |= load(manager, name)
        except Exception as error:  # whatever the tasks' own code and the hub raise
            raise ValueError(f"task {name} cannot be loaded: {type(error).__name__}: {error}") from error
    if {getattr(task, "OUTPUT_TYPE", None) for task in tasks.values()} <= READ_ONLY:
        raise ValueError(
            f"{', '.join(names)} only reads: policies act on decode steps; take a task that generates text"
        )
    unsafe = [name for name, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)]
    if unsafe and not allow_code:
        raise ValueError(f"{', '.join(unsafe)} runs code that the model writes; add --allow-code in a sandbox of yours")
    return tasks


def task_files(name: str) -> list[str]:
    """The task files of a folder; another name as it is. Raises ValueError for a file that is not there, and a folder
    without any."""
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(str(file) for file in path.glob("*.yaml") if not file.name.startswith("_"))
        if not files:
            raise ValueError(f"the folder {name} holds no task file (.yaml)")
        return files
    if path.suffix in (".yaml", ".yml") and not path.is_file():
        raise ValueError(f"the task file {name} does not exist")
    return [str(path) if path.is_file() else name]


def load(manager: Any, name: str) -> dict[str, Any]:
    """The tasks of one name or file. Data that a task file names by a path are looked for here, and then beside it."""
    entry = manager.task_index.get(name)
    beside = Path(name).parent if entry is None else getattr(entry, "yaml_path", None) and entry.yaml_path.parent
    try:
        found: dict[str, Any] = manager.load([name])["tasks"]
    except FileNotFoundError:
        if not beside:
            raise
        name = name if entry else str(Path(name).resolve())
        with contextlib.chdir(beside):
            found = manager.load([name])["tasks"]
    return found


class Batches:
    """What is put before one of the harness's model classes. `parts` holds, for each group of tasks that shared
    batches, their names and the policy's statistics, one dictionary per worker. `lengths` holds the tokens of every
    answer by task and item, and `sampled` the tasks whose answers are not greedy.

    An engine says how it changes the policy (`set_policy(spec)` returns the spec with all its knobs), and counts.
    """

    mix: str
    parts: list[tuple[list[str], list[dict[str, Any]]]]
    lengths: dict[str, dict[int, list[int]]]
    sampled: set[str]
    tokenizer: Any

    def set_policy(self, spec: str) -> str:
        raise NotImplementedError

    def set_guard(self, options: dict[str, Any] | None) -> None:
        """Guards the policy that is set; None ends it."""
        if options is not None:
            raise ValueError("--guard needs --engine vllm: this engine has no quality guard")

    def reset_stats(self) -> None:
        raise NotImplementedError

    def stats(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def begin(self) -> None:
        """Before the tasks of one policy: nothing is left of what ran before."""
        self.parts, self.lengths, self.sampled = [], {}, set()

    def length(self, text: str) -> int:
        """Tokens of an answer, as the model's tokenizer cuts it; what ended it does not count."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def answer(self, requests: list[Any]) -> list[str]:
        """The texts written for requests that may share batches."""
        generate: Callable[..., list[str]] = super().generate_until  # type: ignore[misc]
        return generate(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        names = list(dict.fromkeys(request.task_name for request in requests))
        answers: list[str] = [""] * len(requests)
        for group in [names] if self.mix == "heterogeneous" else [[name] for name in names]:
            places = [place for place, request in enumerate(requests) if request.task_name in group]
            self.reset_stats()
            written = self.answer([requests[place] for place in places])
            for place, answer in zip(places, written, strict=True):
                answers[place] = answer
            self.parts.append((group, self.stats()))
        for request, text in zip(requests, answers, strict=True):
            items = self.lengths.setdefault(request.task_name, {})
            items.setdefault(request.doc_id, []).append(self.length(text))
            if is_sampled(request.args[1]):
                self.sampled.add(request.task_name)
        return answers


def is_sampled(asked: dict[str, Any]) -> bool:
    """Whether a task asks for anything but the likeliest tokens; the harness decodes greedily unless it does."""
    return bool(asked.get("do_sample", asked.get("temperature", 0) > 0)) and asked.get("temperature", 1) > 0


def shuffled(count: int) -> list[int]:
    """The places 0 to count - 1 in a random order, the same one for every policy."""
    return random.Random(0).sample(range(count), count)


def run(
    lm: Any, tasks: dict[str, Any], *, limit: int | None, num_fewshot: int | None, chat: bool, allow_code: bool
) -> dict[str, Any]:
    """The harness's results of all tasks, with samples."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from tqdm import tqdm  # type: ignore[import-untyped]

    lm.begin()
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
