"""Imports go one way: cli, lab, engines, control, calibration, policies, kernels, routing; the testbed serves two."""

import ast
from pathlib import Path

import pytest

import lynx_moe

ROOT = Path(lynx_moe.__file__).parent
ROOMS = ["routing", "kernels", "policies", "calibration", "control", "engines", "lab", "cli"]
MAY_USE = {room: set(ROOMS[: place + 1]) for place, room in enumerate(ROOMS)}
MAY_USE |= {"testbed": {"testbed"}}
MAY_USE |= {"__init__": {"routing", "policies", "engines"}}  # offers their public names; an engine's when asked for it
MAY_USE["lab"] |= {"testbed"}
MAY_USE["cli"] |= {"testbed"}
ENGINES = {"vllm", "transformers", "sglang"}
FILES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_doors_open_one_way(path: Path) -> None:
    used = {name.split(".")[1] for name in imports(path) if name.startswith("lynx_moe.")}
    assert used <= MAY_USE[room_of(path)], f"{path.name} reaches up: {used - MAY_USE[room_of(path)]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_below_engines_knows_one(path: Path) -> None:
    if ROOMS.index(room_of(path)) < ROOMS.index("engines") if room_of(path) in ROOMS else False:
        assert not {name.split(".")[0] for name in imports(path)} & ENGINES
        calls = [
            n.func.id
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
        assert not {"print", "open"} & set(calls)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_text_files_are_opened_as_utf8_by_name(path: Path) -> None:
    """What the locale says is no reader's business. `Path.open` and `open` in a binary mode have no encoding."""
    for call in [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        if name in ("read_text", "write_text") or (name == "open" and not any("b" in mode for mode in modes)):
            given = {keyword.arg for keyword in call.keywords}
            assert given & {"encoding"} or _is_not_a_file(call), f"line {call.lineno}: name the encoding"


def _is_not_a_file(call: ast.Call) -> bool:
    return ast.unparse(call.func) in ("self.real.read_text",)  # a distribution's metadata
