"""Which requests share a batch, with stand-ins for the engine and for the harness's model."""

from types import SimpleNamespace
from typing import Any

import pytest

from lynx_moe.lab.harness import Batches, Shuffled


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
    """The harness's class, as far as Batches needs it: sends every request to the engine as it is."""

    def generate_until(self, requests: list[Any], disable_tqdm: bool) -> list[str]:
        outputs = self.model.generate([r.number for r in requests], None)  # type: ignore[attr-defined]
        return [str(number) for number, _ in outputs]


class Served(Batches, Model):
    def __init__(self, mix: str) -> None:
        self.mix, self.parts, self.engine = mix, [], Engine()
        self.model = Shuffled(self.engine)


REQUESTS = [SimpleNamespace(task_name="abc"[n // 7], number=n) for n in range(21)]


@pytest.mark.parametrize("params", [None, list(range(100, 113))])
def test_shuffling_is_the_same_each_time_and_undone(params: Any) -> None:
    engine = Engine()
    given = list(range(13))
    for _ in range(2):
        outputs = Shuffled(engine).generate(given, params)
        assert outputs == [(n, params and params[n]) for n in given]
    assert engine.calls[0] == engine.calls[1] != given


def test_homogeneous_batches_hold_one_task_each() -> None:
    served = Served("homogeneous")
    assert served.generate_until(REQUESTS) == [str(r.number) for r in REQUESTS]
    assert [sorted(call) for call in served.engine.calls] == [list(range(n, n + 7)) for n in (0, 7, 14)]
    assert served.parts == [([name], [{"resets": n}]) for n, name in enumerate("abc", 1)]


def test_heterogeneous_batches_hold_all_tasks_mixed() -> None:
    served = Served("heterogeneous")
    assert served.generate_until(REQUESTS) == [str(r.number) for r in REQUESTS]
    (call,) = served.engine.calls
    assert sorted(call) == list(range(21))
    assert len({number // 7 for number in call[:7]}) > 1
    assert served.parts == [(["a", "b", "c"], [{"resets": 1}])]
