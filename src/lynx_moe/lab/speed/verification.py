"""`lynx-moe bench --drafts`: steps in which every request verifies a draft, timed on a published layer shape.

Random weights guess nothing right. So the drafts are random tokens, handed out in place of vLLM's n-gram proposer, and
what vLLM's rejection sampler says of them is put aside: they are accepted at the rates that are given (vLLM's own
synthetic acceptance does not run on a CPU). Drafting itself costs nothing here. The engine verifies by `remap`;
`vanilla` changes nothing, so it is exact verification. NO_DRAFTS are steps of the same engine while nobody drafts.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from lynx_moe.lab.shared import record
from lynx_moe.lab.speed.measure import check, draw_prompts, open_shape, sample_of, summarise
from lynx_moe.lab.speed.shapes import SHAPES, VOCABULARY, num_experts

NO_DRAFTS, EXACT = "no drafts", "vanilla"
STEPS = 24  # of a round, about
BONUS = 4  # of the arguments of vLLM's `rejection_sample` after its first two
HEAD = (
    "batch",
    "rows",
    "verification",
    "step, ms",
    "against exact",
    "experts a layer",
    "even at accepted length",
    "tokens/s against no drafts",
)
CAPTION = "[± half the range over the rounds]"


def measure(
    *,
    shape: str,
    layers: int | None,
    policies: Sequence[str],
    batch_sizes: Sequence[int],
    rounds: int,
    acceptance: Sequence[float],
    advance: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """The record of an interleaved run, as `speed.measure` makes it. acceptance: of a drafted token at each depth, that
    it and all before it are accepted; as many depths as tokens are drafted.

    Raises ValueError as `check` does.
    """
    check(shape, batch_sizes)
    layers = layers or SHAPES[shape].layers
    llm = open_shape(shape, layers, max(batch_sizes), **drafting(acceptance))
    everyone = variants(policies)
    samples = interleaved(llm, everyone, batch_sizes, rounds, acceptance, advance)
    return {
        "kind": "verification",
        "environment": record.environment(),
        "model": f"{layers} layers of {SHAPES[shape].title}'s shape, random weights, bfloat16, eager",
        "gates": SHAPES[shape].gates.about(),
        "num_experts": num_experts(SHAPES[shape]),
        "layers": layers,
        "acceptance": list(acceptance),
        "rounds": rounds,
        "samples": samples,
        "summary": whole(samples, everyone, batch_sizes, acceptance),
    }


def variants(policies: Sequence[str]) -> list[str]:
    """What takes turns: exact verification, the policies' and steps without drafts."""
    return list(dict.fromkeys((EXACT, *policies, NO_DRAFTS)))


def rates(text: str) -> list[float]:
    """The shares between commas. Raises ValueError unless they lie from 0 to 1 and do not rise with the depth."""
    try:
        found = [float(share) for share in text.split(",")]
    except ValueError:
        found = []
    if not found or sorted(found, reverse=True) != found or not all(0 <= rate <= 1 for rate in found):
        raise ValueError(
            f"--drafts {text!r}: give for every drafted token the share that is accepted, from 0 to 1 and never "
            "rising, such as 0.7,0.5,0.35"
        )
    return found


def drafting(acceptance: Sequence[float]) -> dict[str, Any]:
    """The engine's options."""
    ngrams = {"method": "ngram", "num_speculative_tokens": len(acceptance), "prompt_lookup_max": 2}
    return {"verify": "remap", "speculative_config": ngrams, "async_scheduling": False}


class Drafts:
    """Random tokens for every request of an open engine, in place of its n-gram proposer's, and accepted at the given
    rates by depth; none unless `on`. From then on all engines of the process sample so."""

    def __init__(self, llm: Any, acceptance: Sequence[float]) -> None:
        from vllm.v1.sample import rejection_sampler

        self.on, self._acceptance, self._rng = True, acceptance, random.Random(0)
        runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
        runner.drafter.propose = self._propose
        self._own = rejection_sampler.rejection_sample
        rejection_sampler.rejection_sample = self._sample

    def _propose(self, num_speculative_tokens: int, sampled: Sequence[Sequence[int]], *_: Any, **__: Any) -> Any:
        num = len(self._acceptance) if self.on else 0
        return [[self._rng.randrange(VOCABULARY) for _ in range(num if ids else 0)] for ids in sampled]

    def _sample(self, drafted: Any, counts: Sequence[int], *args: Any, **given: Any) -> Any:
        """Instead of vLLM's [requests, 1 + drafts], which is made too: the accepted tokens, then one more, then -1."""
        sampled, start = self._own(drafted, counts, *args, **given), 0
        bonus = given["bonus_token_ids"] if "bonus_token_ids" in given else args[BONUS]
        for row, count in enumerate(counts):
            kept = accepted(self._rng.random(), self._acceptance[:count])
            last = int(bonus[row, 0] if kept == count else sampled[row, 0])
            sampled[row] = -1
            sampled[row, :kept] = drafted[start : start + kept]
            sampled[row, kept], start = last, start + count
        return sampled


def accepted(draw: float, acceptance: Sequence[float]) -> int:
    """How many drafted tokens are accepted, by a number from 0 to 1: at each depth as often as its rate says."""
    return sum(draw < rate for rate in acceptance)


def interleaved(
    llm: Any,
    everyone: Sequence[str],
    batch_sizes: Sequence[int],
    rounds: int,
    acceptance: Sequence[float],
    advance: Callable[[str], None],
    use: Callable[[str], str] | None = None,
) -> list[dict[str, Any]]:
    """The samples: A B C, B C A, ... at every batch size, after a warm-up; `use` switches to a policy."""
    from lynx_moe.engines import vllm as engine

    drafts, rng, samples = Drafts(llm, acceptance), random.Random(0), []
    for batch in batch_sizes:
        for number in range(rounds + 1):
            prompts, turn = draw_prompts(batch, rng), number % len(everyone)
            for one in [*everyone[turn:], *everyone[:turn]]:
                advance(f"batch {batch}, {one}")
                drafts.on = one != NO_DRAFTS
                spec = (use or engine.set_policy)(one if drafts.on else EXACT)
                engine.reset_stats()
                tokens = round(STEPS * (1 + sum(acceptance))) if drafts.on else STEPS
                seconds = run_whole(llm, prompts, tokens)
                sample = sample_of(batch, number, one, spec, seconds, engine.stats())
                samples += [sample] if number else []
    return samples


def run_whole(
    llm: Any, prompts: Sequence[list[int]], num_tokens: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of the steps after the prompts' in which no request was at its end; the first that is ends them all."""
    from vllm import SamplingParams

    engine, names = llm.llm_engine, [str(number) for number in range(len(prompts))]
    for name, prompt in zip(names, prompts, strict=True):
        params = SamplingParams(max_tokens=num_tokens, ignore_eos=True, temperature=1, seed=int(name), detokenize=False)
        engine.add_request(name, {"prompt_token_ids": prompt}, params)
    seconds: list[float] = []
    while True:
        start = clock()
        outputs = engine.step()
        seconds.append(clock() - start)
        if any(output.finished for output in outputs):
            break
    engine.abort_request(names)
    while engine.has_unfinished_requests():
        engine.step()
    return seconds[1:-1]


def whole(
    samples: Sequence[dict[str, Any]], everyone: Sequence[str], batch_sizes: Sequence[int], acceptance: Sequence[float]
) -> list[dict[str, Any]]:
    """One row per batch size and variant: as `summarise` has it against exact verification, the step as a multiple of
    one without drafts (`even`, with its range), and `pays`: tokens/s as a multiple of those without drafts."""
    rows = summarise(samples, everyone, batch_sizes)
    plain = summarise(samples, [NO_DRAFTS, *(one for one in everyone if one != NO_DRAFTS)], batch_sizes)
    for row in rows:
        (against,) = (one for one in plain if (one["batch"], one["policy"]) == (row["batch"], row["policy"]))
        row["rows"] = row["batch"] * (1 if row["policy"] == NO_DRAFTS else 1 + len(acceptance))
        row["even"] = 1 / against["speedup"]
        row["even_range"] = sorted(1 / edge for edge in against["speedup_range"])
        row["pays"] = (1 if row["policy"] == NO_DRAFTS else 1 + sum(acceptance)) / row["even"]
    return rows


def table(summary: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The rows under HEAD."""

    def spread(row: dict[str, Any], name: str, digits: int) -> str:
        low, high = row[f"{name}_range"]
        return f"±{(high - low) / 2:.{digits}f}"

    found: list[tuple[str, ...]] = []
    for row in summary:
        drafts = row["policy"] != NO_DRAFTS
        names = {NO_DRAFTS: "no drafts", EXACT: "exact"}
        found.append(
            (
                str(row["batch"]),
                str(row["rows"]),
                names.get(row["policy"], f"remap, {row['policy']}"),
                f"{row['tpot_ms']:.1f} ±{(row['tpot_range_ms'][1] - row['tpot_range_ms'][0]) / 2:.1f}",
                f"{row['speedup']:.2f}x {spread(row, 'speedup', 2)}" if drafts and row["policy"] != EXACT else "",
                "" if row["after"] is None else f"{row['before']:.1f} → {row['after']:.1f}",
                f"{row['even']:.2f} {spread(row, 'even', 2)}" if drafts else "",
                f"{row['pays']:.2f}x" if drafts else "",
            )
        )
    return found
