"""Which requests share a batch, with stand-ins for the engine and for the harness's model."""

from types import SimpleNamespace
from typing import Any

import pytest

from lynx_moe.lab.evaluation.harness import is_sampled
from lynx_moe.lab.evaluation.harness_transformers import Lockstep, batches
from lynx_moe.lab.evaluation.harness_vllm import Served, Shuffled


class Engine:
    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.resets = 0

    def generate(self, prompts: list[int], sampling_params: Any, **_: Any) -> list[Any]:
        self.calls.append(prompts)
        each = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        return [(prompt, params) for prompt, params in zip(prompts, each, strict=True)]

    def collective_rpc(self, name: str) -> list[dict[str, int]]:
        self.resets += name == "lynx_reset_stats"
        return [{"resets": self.resets}]


class Model:
    """The harness's class, as far as is needed: sends every request to the engine as it is."""

    def generate_until(self, requests: list[Any], disable_tqdm: bool) -> list[str]:
        outputs = self.model.generate([r.number for r in requests], None)  # type: ignore[attr-defined]
        return [str(number) for number, _ in outputs]


class Letters:
    """A tokenizer that cuts text into its letters."""

    def encode(self, text: str, add_special_tokens: bool) -> list[str]:
        assert not add_special_tokens
        return list(text)


class TinyServed(Served, Model):
    def __init__(self, mix: str) -> None:
        self.mix, self.parts, self.engine = mix, [], Engine()
        self.lengths, self.sampled, self.tokenizer = {}, set(), Letters()
        self.model = Shuffled(self.engine)


class TinyLockstep(Lockstep, Model):
    def __init__(self, mix: str) -> None:
        self.mix, self.parts, self.model, self.batch_size = mix, [], Engine(), 4
        self.lengths, self.sampled, self.tokenizer = {}, set(), Letters()
        self.resets = 0

    def reset_stats(self) -> None:
        self.resets += 1

    def stats(self) -> list[dict[str, Any]]:
        return [{"resets": self.resets}]


def request(number: int) -> Any:
    """Of tasks a and b, which are generated alike, or of c."""
    task = "abc"[number // 7]
    settings = {"until": ["\n"], "max_gen_toks": 8 if task < "c" else 9}
    return SimpleNamespace(task_name=task, number=number, doc_id=number % 7, args=("text", settings))


REQUESTS = [request(number) for number in range(21)]


@pytest.mark.parametrize("params", [None, list(range(100, 113))])
def test_shuffling_is_the_same_each_time_and_undone(params: Any) -> None:
    engine = Engine()
    given = list(range(13))
    for _ in range(2):
        outputs = Shuffled(engine).generate(given, params)
        assert outputs == [(n, params and params[n]) for n in given]
    assert engine.calls[0] == engine.calls[1] != given


def test_homogeneous_batches_hold_one_task_each() -> None:
    served = TinyServed("homogeneous")
    assert served.generate_until(REQUESTS) == [str(r.number) for r in REQUESTS]
    assert [sorted(call) for call in served.engine.calls] == [list(range(n, n + 7)) for n in (0, 7, 14)]
    assert served.parts == [([name], [{"resets": n}]) for n, name in enumerate("abc", 1)]


def test_heterogeneous_batches_hold_all_tasks_mixed() -> None:
    served = TinyServed("heterogeneous")
    assert served.generate_until(REQUESTS) == [str(r.number) for r in REQUESTS]
    (call,) = served.engine.calls
    assert sorted(call) == list(range(21))
    assert len({number // 7 for number in call[:7]}) > 1
    assert served.parts == [(["a", "b", "c"], [{"resets": 1}])]


def test_the_length_of_every_answer_is_kept_by_task_and_item() -> None:
    served = TinyServed("heterogeneous")
    served.generate_until([*REQUESTS, request(10)])  # an item that is asked twice
    assert list(served.lengths) == ["a", "b", "c"]
    assert served.lengths["b"] == {0: [1], 1: [1], 2: [1], 3: [2, 2], 4: [2], 5: [2], 6: [2]}
    assert served.sampled == set()


@pytest.mark.parametrize(
    ("asked", "sampled"),
    [
        ({"until": ["x"]}, False),
        ({"do_sample": False, "temperature": 0.7}, False),
        ({"do_sample": True, "temperature": 0.0}, False),
        ({"temperature": 0.0}, False),
        ({"temperature": 0.7}, True),
        ({"do_sample": True}, True),
    ],
)
def test_who_samples_is_known(asked: dict[str, Any], sampled: bool) -> None:
    assert is_sampled(asked) is sampled


def test_lockstep_batches_are_full_random_and_of_requests_that_are_generated_alike() -> None:
    lockstep = TinyLockstep("heterogeneous")
    assert lockstep.generate_until(REQUESTS) == [str(r.number) for r in REQUESTS]
    calls = lockstep.model.calls
    assert sorted(map(len, calls)) == [2, 3, 4, 4, 4, 4]
    assert sorted(number for call in calls for number in call) == list(range(21))
    assert all({number < 14 for number in call} in ({True}, {False}) for call in calls)
    assert any({number < 7 for number in call} == {True, False} for call in calls)
    assert lockstep.parts == [(["a", "b", "c"], [{"resets": 1}])]
    assert batches(REQUESTS, 4) == batches(REQUESTS, 4)


def test_homogeneous_lockstep_batches_hold_one_task_each() -> None:
    lockstep = TinyLockstep("homogeneous")
    assert lockstep.generate_until(REQUESTS) == [str(r.number) for r in REQUESTS]
    assert [len({number // 7 for number in call}) for call in lockstep.model.calls] == [1] * 6
    assert [stats for _, stats in lockstep.parts] == [[{"resets": n}] for n in (1, 2, 3)]
