"""Control over HTTP: what one request asks for, what everybody gets, and who may say so."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import running
from openai import APIStatusError, BadRequestError, OpenAI

from lynx_moe import cli
from lynx_moe.lab.watch.scrape import scrape
from lynx_moe.testbed import path, tasks

KEY = "open-sesame"
POLICY = "lynx:alpha=0.3,beta=1"
ITEMS = [item for task in tasks.TASKS for item in tasks.test_items(task, 4, seed=3)][:48]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What plain vLLM answers, to concurrent clients."""
    log = tmp_path_factory.mktemp("plain") / "log.txt"
    with running.server(log, running.VLLMS, str(path("qwen3-moe"))) as url:
        return ask_all(url, [None] * len(ITEMS))


@pytest.fixture(scope="module")
def url(plain: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("server")
    template = folder / "chat.jinja"
    template.write_text("{{ messages[0].content }}")
    options = {"lynx_moe": {"max_policies": 1, "presets": {"half": "random:num_keep=16"}}}
    args = ("--policy", POLICY, "--api-key", KEY, "--additional-config", json.dumps(options))
    args += ("--chat-template", str(template))
    with running.server(folder / "log.txt", running.OURS, str(path("qwen3-moe")), *args) as url:
        yield url


def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def ask(url: str, prompt: str, wish: Any, **given: Any) -> Any:
    body: dict[str, Any] = {} if wish is None else {"vllm_xargs": {"lynx_moe": wish}}
    body["ignore_eos"] = given.pop("ignore_eos", False)
    given = {"max_tokens": 64, "temperature": 0, **given}
    return client(url).completions.create(model="testbed", prompt=prompt, extra_body=body, **given)


def ask_all(url: str, wishes: list[str | None]) -> list[str]:
    """16 clients at a time."""
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda pair: ask(url, pair[0].prompt, pair[1]), zip(ITEMS, wishes, strict=True))
        return [answer.choices[0].text for answer in answers]


def policy(url: str, spec: Any = None, key: str | None = KEY) -> tuple[int, dict[str, Any]]:
    """(status, answer) of GET, or of POST if a spec, a dictionary or a raw body is given."""
    given = {"policy": spec} if isinstance(spec, str) else spec
    body = given if given is None or isinstance(given, bytes) else json.dumps(given).encode()
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/lynx_moe/policy", body, headers)) as answer:
            told = json.load(answer)
            assert isinstance(told.pop("prices"), dict)  # of the last step, which no test here knows
            return answer.status, told
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_exact_requests_get_plain_vllm_s_answers_under_mixed_load(plain: list[str], url: str) -> None:
    wishes = [("exact", None, "half", "fast", "oea:k0=2")[i % 5] for i in range(len(ITEMS))]
    answers = ask_all(url, wishes)
    exact = [i for i, wish in enumerate(wishes) if wish == "exact"]
    assert [answers[i] for i in exact] == [plain[i] for i in exact]
    assert running.eventually(lambda: scrape(url).total("rows_remapped_total")) > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (
            "quick",
            "unknown policy 'quick'.*allowed: exact, balanced, fast, half, a price such as 0.05, or a policy's spec",
        ),
        (-0.5, "-0.5 is no price: it must be finite, 0 .exact. or more, such as 0.05; allowed: exact"),
        ("nan", "'nan' is no price"),
        ("oea:k0=99", "k0=99 is more than the model's top_k=8"),
        ("reap:share=0.5,data=/etc/hostname", "only the operator's presets may name files"),
    ],
)
def test_a_bad_wish_answers_400_before_anything_is_streamed(url: str, wish: Any, message: str, stream: bool) -> None:
    with pytest.raises(BadRequestError, match=message):
        ask(url, "a", wish, stream=stream)
    with pytest.raises(BadRequestError, match=message):
        client(url).chat.completions.create(
            model="testbed",
            messages=[{"role": "user", "content": "a"}],
            stream=stream,
            extra_body={"vllm_xargs": {"lynx_moe": wish}},
        )


def test_beam_search_takes_no_wish(url: str) -> None:
    body = {"vllm_xargs": {"lynx_moe": "exact"}, "use_beam_search": True}
    with pytest.raises(BadRequestError, match="beam search takes no vllm_xargs"):
        client(url).completions.create(model="testbed", prompt="a", n=2, max_tokens=4, extra_body=body)


def test_one_spec_too_many_is_refused_while_the_first_runs(url: str) -> None:
    with ask(url, ITEMS[0].prompt, "oea:k0=3", stream=True, max_tokens=400, ignore_eos=True) as parts:
        next(iter(parts))
        with pytest.raises(BadRequestError, match="max_policies=1 specs of their own, and bring oea:k0=3; allowed"):
            ask(url, "a", "oea:k0=4")
        assert ask(url, "a", "oea:k0=3").choices[0].text
    for _ in range(50):  # until the server has noticed that the first client is gone
        try:
            ask(url, "a", "oea:k0=4")
            break
        except BadRequestError:
            time.sleep(0.2)
    else:
        pytest.fail("the first request's policy is still counted")


def test_the_policy_is_told_and_switched_at_run_time(url: str) -> None:
    told = {"presets": {"balanced": POLICY, "fast": "priced:price=0.1", "half": "random:num_keep=16"}}
    told |= {
        "policy": POLICY,
        "max_kl": None,
        "slo_tpot_ms": None,
        "back_off_kl": None,
        "verify": "exact",
        "tuned": None,
        "act_from": 1,
        "act_to": None,
        "switchable": True,
        "recorded": None,
        "workers": 1,
        "agree": True,
    }
    assert policy(url) == (200, told)
    for bad, reason in (
        ("linx", "did you mean 'lynx'"),
        ("oea:k0=99", "more than the model's top_k=8"),
        (b"{", 'the body must be a JSON object {"policy": "SPEC"}, {"slo_tpot_ms": 25}'),
        (b'{"policy": 3}', "the body must be"),
        (b'{"policy": "lynx", "more": 1}', "'more' cannot be changed; allowed: policy, max_kl, slo_tpot_ms"),
        ({"slo_tpot_ms": 0}, "slo_tpot_ms=0 must be a number of milliseconds above 0"),
        ({"max_kl": "low"}, "max_kl='low' must be a number of nats from 1e-05 to 1"),
        ({"policy": "vanilla", "slo_tpot_ms": 5}, "policy='vanilla' changes nothing"),
    ):
        status, answer = policy(url, bad)
        assert (status, answer["error"]["code"]) == (400, 400)
        assert reason in answer["error"]["message"]
        assert policy(url) == (200, told)
    status, answer = policy(url, "vanilla")
    assert (status, answer["policy"], answer["presets"]["balanced"]) == (200, "vanilla", "vanilla")
    assert policy(url, POLICY) == (200, told)


def test_requests_go_on_while_the_policy_is_switched_and_vanilla_is_plain(plain: list[str], url: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(ask_all, url, [("exact", None)[i % 2] for i in range(len(ITEMS))])
        specs = ("oea:k0=2", "vanilla", "random:num_keep=16", "topk:k=2", "vanilla")
        assert [policy(url, spec)[1]["policy"] for spec in specs] == list(specs)
        assert answers.result()[::2] == plain[::2]
    assert ask_all(url, [None] * len(ITEMS)) == plain
    assert policy(url, POLICY)[0] == 200


def test_goals_are_switched_while_requests_go_on(
    plain: list[str], url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An objective that no step meets, and a bound, over HTTP and by the command: told, shown, kept to, and off."""
    monkeypatch.setenv("VLLM_API_KEY", KEY)

    def command(*args: str) -> list[str]:
        cli.app(["policy", url, *args], standalone_mode=False)
        return capsys.readouterr().out.split()

    assert policy(url, "priced:price=0.3")[0] == 200
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(ask_all, url, [("exact", None)[i % 2] for i in range(len(ITEMS))])
        told = policy(url, {"slo_tpot_ms": 0.01})[1]
        assert (told["policy"], told["slo_tpot_ms"], told["max_kl"]) == ("priced:price=0.3", 0.01, None)
        assert answers.result()[::2] == plain[::2]
    assert running.eventually(lambda: scrape(url).total("slo_share")) > 0
    assert scrape(url).total("slo_tpot_seconds") == pytest.approx(1e-5)
    shown = command("--slo-tpot-ms", "1e9", "--max-kl", "0.05")
    assert shown == [
        *("policy", "priced:price=0.3", "max_kl", "0.05", "slo_tpot_ms", "1000000000.0", "back_off_kl", "off")
    ]
    assert running.eventually(lambda: float(scrape(url).total("slo_tpot_seconds") == 1e6 and not missed(url)))
    assert running.eventually(lambda: scrape(url).total("max_kl")) == 0.05
    assert ask_all(url, ["exact"] * len(ITEMS)) == plain
    assert command() == shown
    with pytest.raises(ValueError, match=r"/lynx_moe/policy answers 400: lynx_moe: slo_tpot_ms=-1.0 must be a number"):
        command("--slo-tpot-ms", "-1")
    assert command(POLICY, "--slo-tpot-ms", "off", "--max-kl", "off") == [
        *("policy", POLICY, "max_kl", "off", "slo_tpot_ms", "off", "back_off_kl", "off")
    ]
    assert running.eventually(lambda: float(not scrape(url).values("slo_share", "batch")))


def missed(url: str) -> float:
    return scrape(url).total("slo_missed")


@pytest.mark.parametrize("key", [None, "wrong"])
def test_the_api_key_covers_the_endpoint(url: str, key: str | None) -> None:
    before = policy(url)
    assert policy(url, key=key)[0] == 401
    assert policy(url, "vanilla", key=key)[0] == 401
    assert policy(url) == before
    with pytest.raises(APIStatusError) as caught:
        OpenAI(base_url=f"{url}/v1", api_key=key or "none").models.list()
    assert caught.value.status_code == 401
