"""`lynx-moe doctor`: decode steps of one model at several batch sizes, policies in turns, in about a minute.

The record is a JSONL file: a line of settings, then a line per batch size, round and policy. It is written after every
batch size, so that an interrupted run goes on where it stopped.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lynx_moe.engines.shared import config
from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared.engine import import_vllm, in_own_process, open_engine
from lynx_moe.lab.shared.models import unloadable
from lynx_moe.lab.speed.measure import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    SHAPE_TOKENS,
    draw_prompts,
    one_round,
    open_shape,
)
from lynx_moe.lab.speed.shapes import SHAPES
from lynx_moe.policies import DEFAULT, make_policy

KIND = "doctor"
BESIDE = ("vanilla", "priced:price=0.01", "priced:price=0.1", "priced:price=1")
LEAST_ROUNDS, MOST_ROUNDS = 3, 15
Line = dict[str, Any]
Round = Callable[[int, int], list[Line]]  # batch size, number of the round -> a sample of every policy


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a result.

    model        a folder, a hub name, or a published layer shape, which gets random weights.
    policy       the one that is asked about.
    beside       policies that take turns with it; the first is the baseline.
    batch_sizes  requests that decode together.
    seconds      that the steps may take, in all; each batch size has its share, and LEAST_ROUNDS rounds at the least.
    prompt       tokens of a prompt.
    layers       of a shape; None: what fits in 3 GB.
    compiled     as vLLM serves by default, on a GPU with CUDA graphs; else eager.
    """

    model: str
    policy: str = DEFAULT
    beside: tuple[str, ...] = BESIDE
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    seconds: float = 60.0
    prompt: int = PROMPT_TOKENS
    layers: int | None = None
    compiled: bool = False
    trust_remote_code: bool | None = None

    def __post_init__(self) -> None:
        sizes = self.batch_sizes
        if min(sizes, default=0) < 1 or len(set(sizes)) < 2 or len(set(sizes)) < len(sizes):
            given = ", ".join(map(str, sizes))
            raise ValueError(f"batch sizes {given}: name two or more, each once and at least 1, such as 1,4,16")
        if not self.seconds > 0:
            raise ValueError(f"--seconds {self.seconds:g} must be above 0; 60 is a good minute")
        if self.prompt < 1:
            raise ValueError(f"--prompt {self.prompt} must be 1 token or more")
        if not self.beside:
            raise ValueError("--beside names no policy; the first is the baseline, such as 'vanilla priced:price=1'")
        if len(self.policies) < 2:
            raise ValueError(f"--beside {self.beside[0]!r} is the policy itself; name another one, such as 'vanilla'")
        if self.model in SHAPES and (self.compiled or self.prompt > SHAPE_TOKENS - NEW_TOKENS):
            raise ValueError(
                f"{self.model} is a published shape: it runs eager, with prompts of {SHAPE_TOKENS - NEW_TOKENS} tokens "
                "at most; give a model folder, or leave out --compiled and lower --prompt"
            )
        if self.layers is not None and self.model not in SHAPES:
            raise ValueError(f"--layers is for published shapes ({', '.join(SHAPES)}); {self.model!r} has its own")
        self._check_model()

    def _check_model(self) -> None:
        folder = None if self.model in SHAPES else config.folder_of(self.model)
        for policy in self.policies:
            made = make_policy(policy)
            if folder is not None:
                config.check(config.read(folder), made, self.model)

    @property
    def baseline(self) -> str:
        return make_policy(self.beside[0]).spec

    @property
    def asked(self) -> str:
        return make_policy(self.policy).spec

    @property
    def policies(self) -> list[str]:
        """Full specs of all that take turns, each once, the baseline first."""
        return list(dict.fromkeys(make_policy(spec).spec for spec in (*self.beside, self.policy)))


def measure(settings: Settings, path: Path, advance: Callable[[str], None] = print) -> lines.Record:
    """The record at `path`, finished: what it has already is not measured again. The engine has a process of its own,
    and `advance` is called there, once per batch size.

    Raises ValueError for a model that cannot be loaded, no vLLM, and a record that was made with other settings.
    """
    whole = lines.begin(path, KIND, asdict(settings))
    if left(settings, whole):
        return in_own_process(_run, settings, whole, path, advance)
    return whole


def left(settings: Settings, whole: lines.Record) -> list[int]:
    """The batch sizes that a record lacks, in their order."""
    done = {sample["batch"] for sample in whole["results"]}
    return [size for size in settings.batch_sizes if size not in done]


def _run(settings: Settings, whole: lines.Record, path: Path, advance: Callable[[str], None]) -> lines.Record:
    advance(f"loading {settings.model}")
    take = _rounds_of(_opened(settings), settings)
    return fill(settings, whole, path, take, advance)


def fill(
    settings: Settings,
    whole: lines.Record,
    path: Path,
    take: Round,
    advance: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> lines.Record:
    """The record with the batch sizes that it lacks, saved after each; `take` times one round."""
    start, sizes = clock(), left(settings, whole)
    for place, batch in enumerate(sizes):
        until = start + settings.seconds * (place + 1) / len(sizes)
        samples = [sample for number in _numbers(until, clock) for sample in take(batch, number) if number]
        whole["results"] += samples
        lines.save(whole, path)
        advance(f"batch {batch}: {len(samples) // len(settings.policies)} rounds of {len(settings.policies)} policies")
    return whole


def _numbers(until: float, clock: Callable[[], float]) -> Iterator[int]:
    """The numbers of the rounds at one batch size: 0 warms up, then as many as time allows."""
    for number in range(MOST_ROUNDS + 1):
        if number > LEAST_ROUNDS and clock() >= until:
            return
        yield number


def _opened(settings: Settings) -> Any:
    """The engine, under the asked policy: CUDA graphs that have recorded it know the prices of others too."""
    most = max(settings.batch_sizes)
    if settings.model in SHAPES:
        return open_shape(settings.model, settings.layers or SHAPES[settings.model].layers, most)
    options = {
        "skip_tokenizer_init": True,
        "enforce_eager": not settings.compiled,
        "enable_prefix_caching": False,
        "max_model_len": settings.prompt + NEW_TOKENS,
        "max_num_seqs": most,
        "max_num_batched_tokens": max(2048, most * settings.prompt),  # all prompts in one step
        "trust_remote_code": bool(settings.trust_remote_code),
    }
    import_vllm()  # what is missing is not the model
    try:
        return open_engine(settings.model, settings.asked, **options)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(unloadable("vLLM", settings.model, error)) from error


def _rounds_of(llm: Any, settings: Settings) -> Round:
    """Rounds on an open engine. A sample also has `decision_ms`, what all decisions of a step take; and where a policy
    passes a row alone by uncounted, its own experts."""
    from lynx_moe.engines import vllm as engine

    rng, vocabulary = random.Random(0), llm.model_config.get_vocab_size()

    def take(batch: int, number: int) -> list[Line]:
        prompts = draw_prompts(batch, rng, vocabulary, settings.prompt)
        samples = one_round(llm, engine.set_policy, settings.policies, number, prompts, lambda message: None)
        stats = engine.stats()
        check_together(batch, stats.steps)
        return completed(samples, len(stats.layers), float(engine.shape().top_k))

    return take


def check_together(batch: int, steps: Mapping[str, int]) -> None:
    """Raises ValueError if the steps of a run, by kind, were not one of all prompts and then decode steps of all."""
    if steps["mixed"] or steps["prefill"] > 1:
        raise ValueError(
            f"batch {batch}: the engine has no room for all requests at once, so they did not decode together; lower "
            "--prompt or --batch-sizes, or give it more cache (on a CPU VLLM_CPU_KVCACHE_SPACE, in GiB)"
        )


def completed(samples: Sequence[Line], layers: int, top_k: float) -> list[Line]:
    """The samples with every number that cells are made of."""
    return [
        {
            **sample,
            "before": top_k if sample["before"] is None else sample["before"],
            "after": top_k if sample["after"] is None else sample["after"],
            "decision_ms": layers * (sample["decision_us"] or 0.0) / 1e3,
        }
        for sample in samples
    ]
