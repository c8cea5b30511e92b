"""What `lynx-moe serve` makes of a command line: vLLM's own parser reads it, and what cannot work is one line."""

import json
import os
import socket
import sys
from argparse import Namespace
from importlib import metadata
from pathlib import Path

import pytest

from lynx_moe.engines.vllm.launch import serve
from lynx_moe.policies import DEFAULT

POLICY = "lynx:alpha=3,beta=2"
EXPERTS = {"model_type": "qwen3_moe", "num_experts": 64, "num_experts_per_tok": 8}


@pytest.fixture(scope="module")
def command():
    pytest.importorskip("vllm")
    serve.command.name_vllm()
    from vllm.entrypoints.cli.serve import ServeSubcommand

    return ServeSubcommand


@pytest.fixture
def served(command, monkeypatch: pytest.MonkeyPatch):
    """What vLLM would serve for a command line; SystemExit where nothing is served."""

    def run(*args: str, policy: str = POLICY, **more: object) -> Namespace:
        found = []
        with monkeypatch.context() as patch:
            patch.setattr(command, "cmd", staticmethod(found.append))
            ours = {**({"policy": policy} if policy else {}), **more}
            patch.setattr(sys, "argv", ["serve", json.dumps(ours), *args])
            patch.setattr(os, "environ", os.environ.copy())
            serve.main()
        (given,) = found
        return given

    return run


@pytest.fixture
def refused(served, capsys: pytest.CaptureFixture[str]):
    """The one line that is said instead."""

    def run(*args: str, policy: str = POLICY, **more: object) -> str:
        with pytest.raises(SystemExit, match="2"):
            served(*args, policy=policy, **more)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lynx-moe: error: ")]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture
def model(tmp_path: Path) -> str:
    return folder(tmp_path / "model", **EXPERTS)


def folder(path: Path, **config: object) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(path)


@pytest.fixture
def taken():
    """A port on which somebody listens."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        sock.listen()
        yield sock.getsockname()[1]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([], {}),
        (["--additional-config", '{"a": 1}'], {"a": 1}),
        (["--additional_config", '{"a": 1}'], {"a": 1}),
        (['--additional_config={"a": 1}'], {"a": 1}),
        (['--additional-conf={"a": 1}'], {"a": 1}),
        (["--additional-config.a", "1"], {"a": 1}),
        (["--additional_config.a.b=1"], {"a": {"b": 1}}),
    ],
)
def test_the_policy_joins_the_users_own_keys_in_every_spelling(served, model: str, given: list[str], kept) -> None:
    for line in ((model, *given), (*given, model)):
        args = served(*line, "--port", "0")
        assert args.model_tag == model
        assert args.additional_config == {**kept, "lynx_moe": {"policy": POLICY}}


@pytest.mark.parametrize(
    "given",
    [
        ["--additional_config", '{"lynx_moe": {"log_every": 5}}'],
        ["--additional-config.lynx_moe.log_every", "5"],
        ["--additional_config.lynx_moe.log_every=5"],
    ],
)
def test_our_own_options_are_kept_beside_the_policy(served, model: str, given: list[str]) -> None:
    assert served(model, *given, "--port", "0").additional_config == {"lynx_moe": {"log_every": 5, "policy": POLICY}}


def test_how_drafts_are_verified_joins_them_and_is_checked(served, refused, model: str) -> None:
    found = served(model, "--port", "0", verify="remap").additional_config
    assert found == {"lynx_moe": {"policy": POLICY, "verify": "remap"}}
    named = ("--additional-config", '{"lynx_moe": {"verify": "draft"}}', "--port", "0")
    assert served(model, *named).additional_config["lynx_moe"]["verify"] == "draft"
    assert "names verify 'draft', --verify 'remap'; leave one of them out" in refused(model, *named, verify="remap")
    assert "verify='remp' must be one of 'exact', 'remap', 'draft'" in refused(model, "--port", "0", verify="remp")


def found(path: Path, **change: object) -> str:
    """A doctor's file of findings, of the parts that a server reads."""
    act = {"act_from": 2, "act_to": 27}
    told = {
        "kind": "doctor findings",
        "settings": {"model": "here/model", "beside": ["vanilla"]},
        "policy": POLICY,
        "verdict": "pays",
        "act": act,
    }
    path.write_text(json.dumps({**told, **change}), encoding="utf-8")
    return str(path)


def test_a_doctor_s_findings_say_where_the_policy_acts(served, refused, model: str, tmp_path: Path, caplog) -> None:
    file = found(tmp_path / "doctor.json")
    ours = served(model, "--port", "0", doctor=file).additional_config["lynx_moe"]
    assert ours == {"policy": POLICY, "act_from": 2, "act_to": 27}
    ours = served(model, "--port", "0", act_to=8).additional_config["lynx_moe"]
    assert ours == {"policy": POLICY, "act_to": 8}
    assert "so does act_from; leave out either" in refused(model, "--port", "0", doctor=file, act_from=2)
    assert f"the server's policy is {DEFAULT}" in refused(model, "--port", "0", doctor=file, policy="")
    for content, says in (
        ({"kind": "tune"}, "holds no doctor's findings"),
        ({"act": None}, "holds no doctor's findings"),
        ({"settings": None}, "holds no doctor's findings"),
        ({"policy": 3}, "a policy is named by a spec string"),
        ({"settings": {"model": "model", "beside": ["lynx"]}}, "compares with lynx"),
        ({"act": {"act_from": 2, "to": 3}}, "unknown key 'to'"),
        ({"act": {"act_from": 3, "act_to": 2}}, "act_from=3 is above act_to=2"),
    ):
        assert says in refused(model, "--port", "0", doctor=found(tmp_path / "bad.json", **content))
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    assert "is no JSON" in refused(model, "--port", "0", doctor=str(tmp_path / "bad.json"))
    assert "cannot be read" in refused(model, "--port", "0", doctor=str(tmp_path / "nowhere.json"))


def test_a_config_file_is_read_as_vllm_reads_it(served, model: str, tmp_path: Path) -> None:
    file = tmp_path / "vllm.yaml"
    file.write_text("port: 0\nadditional-config:\n  other: 2\n  lynx_moe:\n    log_every: 5\n", encoding="utf-8")
    expected = {"other": 2, "lynx_moe": {"log_every": 5, "policy": POLICY}}
    assert served(model, "--config", str(file)).additional_config == expected
    with file.open("a", encoding="utf-8") as more:
        more.write(f"model: {model}\nadditional_config.third: 3\n")
    args = served("--config", str(file))
    assert (args.model, args.port) == (model, 0)
    assert args.additional_config == {"third": 3, "lynx_moe": {"policy": POLICY}}  # vLLM: the later spelling wins


def test_a_config_file_that_vllm_would_ignore_is_refused(refused, model: str, tmp_path: Path) -> None:
    assert "--config FILE" in refused(model, f"--config={tmp_path / 'vllm.yaml'}", "--port", "0")
    (tmp_path / "vllm.txt").write_text("port: 0", encoding="utf-8")
    assert "yaml" in refused(model, "--config", str(tmp_path / "vllm.txt"))
    assert "nowhere.yaml" in refused(model, "--config", str(tmp_path / "nowhere.yaml"))


def test_a_policy_is_named_once(served, refused, model: str) -> None:
    named = ["--additional-config.lynx_moe.policy", "oea:k0=3", "--port", "0"]
    assert served(model, *named, policy="").additional_config == {"lynx_moe": {"policy": "oea:k0=3"}}
    assert served(model, *named, policy="oea:k0=3").additional_config == {"lynx_moe": {"policy": "oea:k0=3"}}
    ranks = served(model, "--port", "0", "--data-parallel-size", "4", policy="")
    share = {"policy": "priced:price=0.0075", "back_off_kl": 0.01}  # a quarter of the default's
    assert ranks.additional_config["lynx_moe"] == share
    assert "leave one of them out" in refused(model, *named)


def test_the_default_backs_off_unless_somebody_else_moves_it(served, model: str) -> None:
    def ours(options: dict[str, object]) -> object:
        config = served(model, "--port", "0", "--additional-config", json.dumps({"lynx_moe": options}), policy="")
        return config.additional_config["lynx_moe"]

    assert ours({}) == {"policy": DEFAULT, "back_off_kl": 0.01}
    assert ours({"slo_tpot_ms": 30}) == {"policy": DEFAULT, "back_off_kl": 0.01, "slo_tpot_ms": 30}
    assert ours({"back_off_kl": 0.1}) == {"policy": DEFAULT, "back_off_kl": 0.1}
    for others in ({"back_off_kl": None}, {"max_kl": 0.1}, {"guard": {"max_error": 0.1}}, {"verify": "draft"}):
        assert ours(others) == {"policy": DEFAULT, **others}
    assert ours({"shadow": 0}) == {"policy": DEFAULT, "shadow": 0}
    assert ours({"policy": DEFAULT}) == {"policy": DEFAULT}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("[]", "must be a JSON object"),
        ("5", "must be a JSON object"),
        ('{"lynx_moe": 5}', "must be a JSON object"),
        ('{"lynx_moe": {"log_evry": 5}}', "unknown key 'log_evry'"),
        ('{"lynx_moe": {"log_every": -1}}', "log_every=-1"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(refused, model: str, given: str, says: str) -> None:
    assert says in refused(model, f"--additional-config={given}", "--port", "0", policy="")


def test_a_name_beside_models_is_no_hub_s_where_there_is_none(
    served, refused, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip in the first command of the guide."""
    monkeypatch.chdir(Path(model).parent.parent)
    name = f"{Path(model).parent.name}/modle"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert f"model {name} does not exist: {Path(name).parent} has model, and HF_HUB_OFFLINE" in refused(
        name, "--port", "0"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert served(name, "--port", "0").model_tag == name


def test_what_is_no_number_is_said_to_be_none(refused, model: str) -> None:
    """NaN is not equal to itself, and yet nobody has named two."""
    says = refused(model, "--port", "0", policy="", max_kl=float("nan"))
    assert "max_kl=nan must be a number of nats from 1e-05 to 1" in says


def test_a_line_that_another_program_would_read_is_refused(refused, model: str) -> None:
    assert "--omni" in refused(model, "--omni", "--port", "0")


def test_no_model_is_no_model(refused) -> None:
    assert "no model is named" in refused("--port", "0")


@pytest.mark.parametrize("where", ["s3://bucket/model", "gs://bucket/model", "org/model@main", "org/model:Q4_K_M",
                                   "org/model", "model"])  # fmt: skip
def test_what_lies_elsewhere_is_vllms_to_find(served, where: str) -> None:
    assert served(where, "--port", "0").model_tag == where


def test_folders_are_refused_only_where_vllm_has_nothing_to_read(served, refused, tmp_path: Path) -> None:
    for name in ("nowhere", "deep/down/nowhere"):
        assert "does not exist" in refused(str(tmp_path / name), "--port", "0")
    assert "does not exist" in refused("some/where/else", "--port", "0")
    mistral = tmp_path / "mistral"
    mistral.mkdir()
    assert "holds no config.json" in refused(str(mistral), "--port", "0")
    (mistral / "params.json").write_text("{}", encoding="utf-8")
    assert served(str(mistral), "--port", "0").model_tag == str(mistral)
    (mistral / "config.json").write_text("{", encoding="utf-8")
    assert "no readable config.json" in refused(str(mistral), "--port", "0")


def test_a_dense_model_is_refused_wherever_the_port_stands(refused, tmp_path: Path) -> None:
    dense = folder(tmp_path / "dense", model_type="llama", hidden_size=64)
    assert "dense model" in refused(dense)
    assert "dense model" in refused("--port", "8113", dense)


def test_the_overridden_number_of_experts_per_token_decides(served, refused, model: str) -> None:
    wide = ["--hf-overrides", '{"num_experts_per_tok": 12}', "--port", "0"]
    assert served(model, *wide, policy="topk:k=10").model_tag == model
    narrow = ["--hf-overrides.num_experts_per_tok", "4", "--port", "0"]
    assert "k=6" in refused(model, *narrow, policy="topk:k=6")
    assert served(model, "--port", "0", policy="topk:k=6").model_tag == model


def test_a_calibration_is_asked_for_even_where_the_model_is_still_to_be_fetched(refused, model: str) -> None:
    for where in (model, "some/model"):
        says = refused(where, "--port", "0", policy="reap:share=0.5,data=nowhere.safetensors")
        assert "calibration file nowhere.safetensors does not exist" in says


def test_a_port_in_use_is_refused_wherever_it_is_named(refused, model: str, tmp_path: Path, taken: int) -> None:
    file = tmp_path / "vllm.yaml"
    file.write_text(f"port: {taken}\n", encoding="utf-8")
    for line in ((model, "--port", str(taken)), ("--port", str(taken), model), (model, "--config", str(file))):
        assert f"port {taken} cannot be used" in refused(*line)


def test_a_server_is_asked_for_its_own_address_alone(
    served, refused, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(serve.address, "check_port", lambda host, port: asked.append((host, port)))
    file = tmp_path / "vllm.yaml"
    file.write_text("port: 8123\n", encoding="utf-8")
    served("--port", "8113", model)
    served(model, "--config", str(file), "--host", "::1")
    served(model, "--uds", str(tmp_path / "socket"))
    served(model, "--headless")
    served(model)
    assert asked == [("", 8113), ("::1", 8123), ("", 8000)]
    (tmp_path / "socket").touch()
    assert "exists" in refused(model, "--uds", str(tmp_path / "socket"))
    assert "no folder" in refused(model, "--uds", str(tmp_path / "nowhere" / "socket"))
    assert "bytes" in refused(model, "--uds", str(tmp_path / ("s" * 110)))


def ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "::"])
def test_ipv6_hosts_are_bound_as_vllm_binds_them(served, refused, model: str, host: str) -> None:
    assert served(model, "--host", host, "--port", "0").host == host
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind((host, 0))
        sock.listen()
        port = sock.getsockname()[1]
        assert f"port {port} of host '{host}' cannot be used" in refused(model, "--host", host, "--port", str(port))


def test_hosts_and_ports_that_are_none_are_named(refused, model: str) -> None:
    assert "no.such.host.invalid" in refused(model, "--host", "no.such.host.invalid")
    assert "port 70000" in refused(model, "--port", "70000")


def test_what_vllms_parser_refuses_stays_its_own(served, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        served(model, "--prot", "8000")
    assert "unrecognized arguments: --prot" in capsys.readouterr().err


def test_what_breaks_after_reading_keeps_its_traceback(command, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: Namespace) -> None:
        raise ValueError("the engine's own")

    monkeypatch.setattr(command, "cmd", staticmethod(fail))
    monkeypatch.setattr(sys, "argv", ["serve", json.dumps({"policy": POLICY}), model, "--port", "0"])
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with pytest.raises(ValueError, match="the engine's own"):
        serve.main()


def test_vllm_loads_the_endpoint_and_every_plugin_that_it_would_load_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    point = lambda name, group: metadata.EntryPoint(name, "a:b", group)  # noqa: E731
    points = [point("lynx_moe", "vllm.general_plugins"), point("lynx_moe", "vllm.endpoint_plugins")]
    points += [point("lora", "vllm.general_plugins"), point("tpu", "vllm.platform_plugins"), point("x", "vllm.other")]
    points += [point("open", "vllm.endpoint_plugins")]
    monkeypatch.setattr(metadata, "entry_points", lambda group: [each for each in points if each.group == group])
    assert serve.allowed_plugins(None) == "lora,lynx_moe,tpu"
    assert serve.allowed_plugins("lynx_moe,open") == "lynx_moe,open"
    with pytest.raises(ValueError, match="VLLM_PLUGINS=lora leaves lynx_moe out"):
        serve.allowed_plugins("lora")
    points.append(point("lora", "vllm.endpoint_plugins"))  # nobody asked for this one
    with pytest.raises(ValueError, match="the plug-ins lora would open endpoints"):
        serve.allowed_plugins(None)
