"""One engine of `lynx-moe speculation`: groups of requests that start together answer exercises, greedily.

Requests whose answers are of like length go together, so that most steps have the whole group in them: loads are
counted in those steps alone. B requests of a group, D drafted tokens at most.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lynx_moe.lab.shared.engine import open_engine
from lynx_moe.lab.shared.intervals import weighted_mean
from lynx_moe.lab.speculation import harm
from lynx_moe.lab.speculation.loads import Loads
from lynx_moe.testbed.tasks import TASKS, Item, test_items

Line = dict[str, Any]
LONGEST = 96  # tokens of an answer: twice the longest right one


def serve(
    model: str, drafting: dict[str, Any], cells: Sequence[tuple[str, int]], items_per_task: int, num_drafts: int
) -> Iterator[Line]:
    """A line per cell, (policy, B), as soon as it is measured; `drafting` are the engine's options about drafts and
    shadow steps."""
    most = max(size for _, size in cells)
    given: dict[str, Any] = {
        "max_model_len": 512,
        "max_num_seqs": most,
        "enforce_eager": True,
        "async_scheduling": False,
    }
    llm = open_engine(model, **given, **drafting)
    from lynx_moe.engines import vllm as engine
    from lynx_moe.engines.vllm.step.plan import active

    items = exercises(items_per_task, llm.get_tokenizer())
    outcomes = Outcomes(llm.llm_engine.engine_core.engine_core.scheduler)
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    for policy, size in cells:
        spec = engine.set_policy(policy)
        llm.reset_prefix_cache()
        engine.reset_stats()
        outcomes.seen.clear()
        with Loads(active()) as loads, harm.Harm(active(), lambda: runner.input_batch.req_ids) as harms:
            texts, lengths = answers(llm, items, size, loads, lambda: harms.committed(outcomes.last))
        drafts = [depths(outcomes.seen[number], num_drafts) for number in range(len(items))]
        drafter = engine.stats().drafter
        yield {
            "policy": policy,
            "spec": spec,
            "batch": size,
            "n": len(items),
            "right": [int(text.strip() == item.answer.strip()) for text, item in zip(texts, items, strict=True)],
            "length": lengths,
            "verifications": [len(outcomes.seen[number]) for number in range(len(items))],
            "drafted": [drafted for drafted, _ in drafts],
            "accepted": [accepted for _, accepted in drafts],
            "loads": loads_line(loads),
            "harm": harm.line(harms.effects),
            "drafter_loads": None if drafter is None else [drafter.mean_before, drafter.mean_after],
        }


def exercises(per_task: int, tokenizer: Any) -> list[Item]:
    """Of every task as many, those with short answers first."""
    items = [item for task in TASKS for item in test_items(task, per_task)]
    return sorted(items, key=lambda item: len(tokenizer.encode(item.answer, add_special_tokens=False)))


def answers(
    llm: Any, items: Sequence[Item], size: int, loads: Loads, after_step: Callable[[], None]
) -> tuple[list[str], list[int]]:
    """The text of every answer, and its tokens with the last one; `size` requests at a time, which start together."""
    from vllm import SamplingParams

    engine, done = llm.llm_engine, {}
    written = [0] * len(items)
    for start in range(0, len(items), size):
        group = range(start, min(start + size, len(items)))
        for number in group:
            engine.add_request(str(number), items[number].prompt, SamplingParams(temperature=0, max_tokens=LONGEST))
        while engine.has_unfinished_requests():
            loads.whole = len(group) == size and not any(number in done for number in group)
            outputs, before = engine.step(), sum(written)
            for output in outputs:
                number = int(output.request_id)
                written[number] = len(output.outputs[0].token_ids)
                if output.finished:
                    done[number] = output.outputs[0]
            loads.committed(sum(written) - before)
            after_step()
    return [done[number].text for number in range(len(items))], written


class Outcomes:
    """What vLLM's scheduler says of every draft that was verified: request -> [(drafted tokens, accepted), ...]."""

    def __init__(self, scheduler: Any) -> None:
        self.seen: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        self._own = scheduler.make_spec_decoding_stats
        scheduler.make_spec_decoding_stats = self._see

    def _see(self, stats: Any, **told: Any) -> Any:
        self.seen[_number(told["request_id"])].append((told["num_draft_tokens"], told["num_accepted_tokens"]))
        return self._own(stats, **told)

    def last(self, request: str) -> int:
        """Tokens of a request's last draft that were accepted."""
        return self.seen[_number(request)][-1][1]


def _number(request: str) -> int:
    return int(request.partition("-")[0])  # vLLM adds a part of its own


def depths(outcomes: Sequence[tuple[int, int]], num_drafts: int) -> tuple[list[int], list[int]]:
    """Of one request: drafts that had a token at each depth, and those in which it was accepted, [D] each."""
    places = range(1, num_drafts + 1)
    return (
        [sum(drafted >= depth for drafted, _ in outcomes) for depth in places],
        [sum(accepted >= depth for _, accepted in outcomes) for depth in places],
    )


def loads_line(loads: Loads) -> Line:
    """Distinct experts of a layer: a step by the model's own routing (`before`) and as loaded (`after`), and what was
    loaded for each committed token, with 95 % intervals over steps; None where no group was whole."""
    steps = loads.steps
    line: Line = {name: sum(getattr(step, name) for step in steps) for name in ("rows", "tokens", "verifies")}
    ones = [1.0] * len(steps)
    figures = {
        "before": ([step.before for step in steps], ones),
        "after": ([step.after for step in steps], ones),
        "a_token": ([step.after / step.tokens for step in steps], [float(step.tokens) for step in steps]),
    }
    for name, (values, weights) in figures.items():
        weighed = sum(value * weight for value, weight in zip(values, weights, strict=True))
        line[name] = weighed / sum(weights) if steps else None
        line[f"{name}_interval"] = weighted_mean(values, weights) if len(steps) > 1 else None
    return {"steps": len(steps), **line}
