"""What is no wish is refused at the door, and harms nobody in the engine."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from core import Core, shared
from vllm.v1.request import StreamingUpdate

from lynx_moe.engines.shared.options import EXACT
from lynx_moe.engines.shared.step import wishes
from lynx_moe.engines.vllm.front import admission
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.step import cache

OPTIONS = Options(policy="lynx", presets={"half": "random:num_keep=2", "filed": "reap:share=0.5,data=a.safetensors"})
MISSPELT = ("lynx", "lynx-moe", "lynxmoe", "LYNX_MOE", "LynxMoe", "linx_moe", "lnyx_moe", "lynx_mo", "lynx_moe_policy")
FOREIGN = ("kv_transfer_params", "ngram_size", "moe", "moe_policy", "llama_moe", "policy", "links", "lmcache.skip", "x")
NO_WISHES = (
    -1,
    "-0.5",
    float("nan"),
    "inf",
    True,
    ["exact"],
    {"a": 1},
    {"exact"},
    "nonsense",
    "exact ",
    "lynx:alpha=x",
    "oea:k0=" + "9" * 400,
)


def params(wish: Any = None, key: str = "lynx_moe", **more: Any) -> Any:
    return SimpleNamespace(extra_args={key: wish, **more})


@pytest.mark.parametrize("key", MISSPELT)
def test_a_misspelt_key_is_refused_with_the_right_one(key: str) -> None:
    for extra in ({}, {"lynx_moe": "exact"}):
        with pytest.raises(ValueError, match=f"the key '{key}' asks for nothing; write 'lynx_moe'"):
            wishes.check_keys(params("exact", key, **extra))


@pytest.mark.parametrize("key", FOREIGN)
def test_keys_of_other_plugins_pass(key: str) -> None:
    wishes.check_keys(params("exact", key))
    assert wishes.understood(params("nonsense", key), OPTIONS) is None


@pytest.mark.parametrize("wish", ["remp", "draft", 1, True, ["exact"], {"a": 1}, ""], ids=repr)
def test_a_verification_that_is_none_is_refused_and_exact_in_the_engine(wish: Any) -> None:
    given = params("fast", lynx_moe_verify=wish)
    with pytest.raises(ValueError, match=r"lynx_moe_verify: .* must be 'exact' or 'remap'") as caught:
        wishes.check_keys(given)
    assert "\n" not in str(caught.value)
    assert ("the server's option" in str(caught.value)) == (wish == "draft")
    assert wishes.understood(given, OPTIONS) == EXACT
    assert not wishes.remaps_drafts(given, Options(policy="lynx", verify="remap"))
    door = Door()
    with pytest.raises(admission.Unwelcome, match="lynx_moe_verify"):
        admission.check(door, given)


@pytest.mark.parametrize(
    ("server", "wish", "remaps"),
    [
        *(("exact", None, False), ("exact", "remap", True), ("remap", None, True)),
        *(("remap", "exact", False), ("draft", None, False), ("draft", "remap", True)),
    ],
)
def test_a_request_s_verification_goes_before_the_server_s(server: str, wish: str | None, remaps: bool) -> None:
    given = params(None, **({} if wish is None else {"lynx_moe_verify": wish}))
    wishes.check_keys(given)
    assert wishes.remaps_drafts(given, Options(policy="lynx", verify=server)) == remaps
    assert wishes.understood(given, OPTIONS) is None


def test_keys_that_are_no_strings_pass() -> None:
    wishes.check_keys(SimpleNamespace(extra_args={7: "exact", None: 1}))


@pytest.mark.parametrize(
    ("wish", "meaning"),
    [
        (None, None),
        ("balanced", None),
        ("exact", EXACT),
        ("half", "random:num_keep=2"),
        ("filed", "reap:share=0.5,data=a.safetensors"),
        ("oea:k0=1", "oea:k0=1"),
    ],
)
def test_what_a_wish_means(wish: str | None, meaning: str | None) -> None:
    assert wishes.understood(params(wish), OPTIONS) == meaning


@pytest.mark.parametrize("wish", [*NO_WISHES, "reap:share=0.5,data=/etc/hostname"], ids=repr)
def test_what_is_not_understood_is_exact_in_the_engine_with_a_warning(wish: Any, caplog: Any) -> None:
    assert wishes.understood(params(wish), OPTIONS) == EXACT
    assert "a request stays exact" in caplog.text
    assert wishes.understood(params("fast", "lynx"), OPTIONS) == EXACT


@pytest.mark.parametrize("wish", NO_WISHES, ids=repr)
def test_the_engine_s_process_takes_any_wish(wish: Any) -> None:
    cache.switched(True)
    core = Core("lynx")
    assert shared(core.add(4, wish, 8), core.add(12)) == 3  # what it generates is exact, and shared


def test_a_policy_that_breaks_in_the_engine_leaves_its_request_exact(monkeypatch: Any) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("not a ValueError\nsecond line")

    monkeypatch.setattr(wishes, "make_policy", broken)
    assert wishes.understood(params("oea:k0=1"), OPTIONS) == EXACT


class Door:
    """An engine as far as admission knows it."""

    def __init__(self) -> None:
        self.vllm_config = SimpleNamespace(additional_config={"lynx_moe": {"policy": "lynx", "max_policies": 1}})
        self.output_processor = SimpleNamespace(external_req_ids={"1": ["1-a"]})
        self.taken: list[Any] = []

    async def take(self, engine: Any, request_id: str, prompt: Any, given: Any) -> None:
        async for part in prompt:
            self.taken.append(part.prompt)


async def parts(*given: Any) -> Any:
    for number, each in enumerate(given):
        yield SimpleNamespace(prompt=number, sampling_params=each)


def stream(door: Door, *given: Any) -> Any:
    return asyncio.run(admission.add_request_async(door.take, door, "1", parts(*given), params(None)))


def told_of_the_model(door: Door) -> None:
    state = admission.of(door)
    assert state is not None
    state.unasked = False


@pytest.mark.parametrize("wish", NO_WISHES, ids=repr)
@pytest.mark.parametrize("place", [0, 2])
def test_a_bad_wish_in_any_part_of_a_stream_is_refused_before_the_engine_sees_it(place: int, wish: Any) -> None:
    door = Door()
    told_of_the_model(door)
    given = [None, params("exact"), params("oea:k0=1")]
    given[place] = params(wish)
    with pytest.raises(admission.Unwelcome, match=r"lynx_moe: .*; allowed: exact"):
        stream(door, *given)
    assert door.taken == list(range(place))


def test_a_misspelt_key_in_a_part_of_a_stream_is_refused() -> None:
    door = Door()
    with pytest.raises(admission.Unwelcome, match="the key 'lynx' asks for nothing"):
        stream(door, params("exact", "lynx"))


def test_a_stream_brings_one_policy_at_a_time() -> None:
    door = Door()
    told_of_the_model(door)
    stream(door, params("oea:k0=1"), params("oea:k0=2"), None)
    assert door.taken == [0, 1, 2]
    state = admission.of(door)
    assert state is not None
    with pytest.raises(admission.Unwelcome, match="max_policies=1 specs of their own, and bring oea:k0=2"):
        state.check("oea:k0=3")
    stream(door, params("exact"))
    assert state.check("oea:k0=3") == "oea:k0=3"


def test_a_request_that_is_made_already_asks_by_its_own_parameters() -> None:
    door = Door()
    told_of_the_model(door)
    made = SimpleNamespace(sampling_params=params("nonsense"))
    with pytest.raises(admission.Unwelcome, match="unknown policy 'nonsense'"):
        admission.add_request(lambda *_: None, door, "1", made, params(None))
    with pytest.raises(admission.Unwelcome, match="unknown policy 'nonsense'"):
        admission.generate(lambda *_: None, door, made, params(None), "1")


def test_workers_that_do_not_tell_of_the_model_check_by_themselves(caplog: Any) -> None:
    door = Door()
    door.collective_rpc = lambda *_: 1 / 0  # type: ignore[attr-defined]
    for _ in range(2):
        admission.add_request(lambda *_: None, door, "1", "prompt", params("oea:k0=4000"))
    assert caplog.text.count("the workers do not tell of the model") == 1


def continued(core: Core, session: Any, wish: str | None) -> None:
    """The next part of a stream, as vLLM's scheduler takes it up when the part before has ended."""
    part = core.add(4, wish)
    part.request_id, part.resumable = session.request_id, True
    core.scheduler.requests.pop(next(name for name, each in core.scheduler.requests.items() if each is part))
    cache.add_request(lambda *_: None, core, part)


def test_a_stream_that_goes_on_under_remapping_shares_nothing_from_then_on() -> None:
    cache.switched(True)
    core = Core("lynx")
    session = core.add(4, "exact", 4)
    continued(core, session, "exact")
    assert getattr(session, cache.SINCE, None) is None
    continued(core, session, "oea:k0=1")
    for token in range(108, 116):
        session.append_output_token_ids(token)
    assert shared(session, core.add(16)) == 2  # what was written before stays shared


def test_a_part_that_waits_counts_when_the_server_begins_to_remap() -> None:
    cache.switched(True)
    core = Core("vanilla")
    session = core.add(4, "exact", 4)
    session.streaming_queue = [
        None,
        StreamingUpdate(None, [1], 3, 0.0, SimpleNamespace(extra_args=None)),  # type: ignore[arg-type]
    ]
    cache.switched(False)
    assert hasattr(session, cache.SINCE)
    cache.switched(True)
