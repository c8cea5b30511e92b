"""Compiled graphs are found again whatever our options are: they know a layer by its number, and no policy."""

from typing import Any

import pytest

from lynx_moe.engines.vllm import plugin
from lynx_moe.testbed import path


def key(extra: dict[str, Any]) -> str:
    from vllm.engine.arg_utils import EngineArgs

    plugin.register()
    config = EngineArgs(model=str(path("qwen3-moe")), additional_config=extra).create_engine_config()
    found = config.compute_hash()
    assert config.additional_config == extra
    return str(found)


@pytest.fixture(scope="module")
def plain() -> str:
    return key({})


def test_no_option_is_part_of_the_key(plain: str) -> None:
    guard = {"max_error": 0.2}
    options: list[dict[str, Any]] = [
        {"policy": "lynx"},
        {"policy": "vanilla"},
        {"policy": "lynx", "log_every": 5},
        {"policy": "lynx", "stats": False, "metrics_every": 0, "max_policies": 0},
        {"policy": "lynx", "presets": {"mine": "oea:k0=2"}, "guard": guard},
    ]
    keys = {key({"lynx_moe": each}) for each in options}
    assert len(keys) == 1
    assert plain not in keys  # a graph without our operator


def test_experts_on_a_disk_are(plain: str) -> None:
    """Their graphs have another operator in the place of the kernel, and tables of so many slots."""
    given = [{}, {"experts_resident": 8}, {"experts_resident": 16}]
    keys = {key({"lynx_moe": {"policy": "lynx", **options}}) for options in given}
    assert len({plain, *keys}) == 4


def test_other_plugins_options_are(plain: str) -> None:
    ours = {"lynx_moe": {"policy": "lynx"}}
    assert len({plain, key({"other": 1}), key(ours), key({**ours, "other": 1}), key({**ours, "other": 2})}) == 5
