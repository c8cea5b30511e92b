"""Imports go one way, between rooms, inside them and between files; and rooms stay small. docs/design.md says why."""

import ast
import re
import statistics
from pathlib import Path

import import_graph
import pytest

import lynx_moe

ROOT = Path(lynx_moe.__file__).parent
ROOMS = ["routing", "kernels", "policies", "calibration", "control", "engines", "lab", "cli"]
MAY_USE = {room: set(ROOMS[: place + 1]) for place, room in enumerate(ROOMS)}
MAY_USE |= {"testbed": {"testbed"}}
MAY_USE |= {"": {"routing", "policies", "engines"}}  # offers their public names; an engine's when asked for it
MAY_USE["lab"] |= {"testbed"}
MAY_USE["cli"] |= {"testbed"}
INSIDE = {  # lowest first: each may use what stands before it, and rooms of one set do not know one another
    "engines": [{"shared", "disk"}, {"transformers", "vllm", "sglang"}, {""}],
    "engines.vllm": [{"launch"}, {"step"}, {"tell"}, {"front"}, {"model"}, {"plugin", ""}],
    "engines.sglang": [{"launch"}, {"step"}, {"front", "model"}, {"plugin", ""}],
    "lab": [
        {"shared"},
        {"speed", "evaluation", "fidelity", "speculation", "watch"},
        {"demo", "doctor", "load", "replay", "calibrate", "profile", "bakeoff", "gpu", "evidence", "tune"},
        {""},
    ],
    "policies": [{"contract"}, {"controls", "published", "priced"}, {""}],
    "testbed": [
        {"tasks", "model", "locate"},
        {"training"},
        {"carve", "harness", "report"},
        {"mtp", "text"},
        {"cli", ""},
        {"__main__"},
    ],
}
ENGINES = {"vllm", "transformers", "sglang"}
FILES = sorted(ROOT.rglob("*.py"))
GRAPH = import_graph.graph(ROOT)
READ, NAMED = (".py", ".md"), re.compile(r"^ *(?:from|import) (lynx_moe[\w.]*)", re.MULTILINE)
MOST_FILES, MEDIAN_LINES, MOST_LINES = 15, 90, 250


def room_of(module: str, outer: str = "") -> str:
    """The room inside `outer` that a module is in; empty for those that are in none."""
    inner = module.removeprefix(f"lynx_moe.{outer}").strip(".") if module != "lynx_moe" else ""
    return inner.split(".")[0]


def within(module: str, outer: str) -> bool:
    return f"{module}.".startswith(f"lynx_moe.{outer}.")


def test_no_import_leads_back_to_where_it_began() -> None:
    assert len(GRAPH) == len(FILES)
    assert import_graph.circles(GRAPH) == []


def test_no_folder_uses_one_that_uses_it() -> None:
    assert import_graph.circles(import_graph.folders(GRAPH)) == []


@pytest.mark.parametrize("module", GRAPH)
def test_doors_open_one_way(module: str) -> None:
    allowed = MAY_USE[room_of(module)]
    up = {used for used in GRAPH[module] if room_of(used) not in allowed}
    assert not up, f"{module} reaches up: {up}"


@pytest.mark.parametrize("outer", INSIDE)
def test_rooms_inside_a_room_are_used_in_order(outer: str) -> None:
    tier = {room: place for place, rooms in enumerate(INSIDE[outer]) for room in rooms}
    inside = {module: used for module, used in GRAPH.items() if within(module, outer)}
    assert {room_of(module, outer) for module in inside} == set(tier), "a room without a place in the order"
    wrong = [
        f"{module} -> {other}"
        for module, used in inside.items()
        for other in used
        if within(other, outer) and (a := room_of(module, outer)) != (b := room_of(other, outer)) and tier[b] >= tier[a]
    ]
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_below_engines_knows_one(path: Path) -> None:
    room = room_of(import_graph.name_of(path, ROOT))
    if room in ROOMS[: ROOMS.index("engines")]:
        assert not {names[0].split(".")[0] for names in import_graph.imports(path)} & ENGINES
        calls = [
            n.func.id
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
        assert not {"print", "open"} & set(calls)


def test_folders_and_files_stay_small() -> None:
    folders = {path.parent for path in ROOT.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    counts = {folder: sum(path.is_file() for path in folder.iterdir()) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}
    lines = {path: len(path.read_text().splitlines()) for path in FILES}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}
    assert statistics.median(lines.values()) <= MEDIAN_LINES


def test_every_folder_of_modules_is_a_package() -> None:
    """Others are left out of the wheel, in silence."""
    assert [path.parent for path in FILES if not (path.parent / "__init__.py").exists()] == []


def test_tools_see_every_folder() -> None:
    """Git, ruff and pytest pass by what they take for the output of a build."""
    passed_by = {"build", "dist", "venv", "site-packages", "node_modules"}
    tests = Path(__file__).parent
    assert [path for top in (ROOT, tests) for path in top.rglob("*") if path.is_dir() and path.name in passed_by] == []


def test_tests_import_no_tests() -> None:
    """Alone, such a test could not be collected: what several of them use is a helper."""
    tests = Path(__file__).parent.rglob("test_*.py")
    assert [path for path in tests if any(names[0].startswith("test_") for names in import_graph.imports(path))] == []


def test_modules_named_in_texts_exist() -> None:
    """Scripts that tests run in processes of their own, examples and documents too: ruff and mypy do not read them."""
    root = Path(__file__).parent.parent
    texts = [p for folder in ("tests", "examples", "docs") for p in (root / folder).rglob("*.*") if p.suffix in READ]
    named = {(path, name) for path in texts for name in NAMED.findall(path.read_text(encoding="utf-8"))}
    assert len(named) > 100
    assert [(str(path), name) for path, name in sorted(named) if name not in GRAPH] == []


def test_circles_are_found_at_any_depth_and_for_type_checkers_too(tmp_path: Path) -> None:
    package = tmp_path / "p"
    for name, text in {
        "__init__": "",
        "a": "from p import b",
        "b": "def f():\n    if True:\n        import p.room.c",
        "room/__init__": "",
        "room/c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import A",
        "room/d": "from p import a\nfrom p.room.e import E",
        "room/e": "from p.room import d",
        "alone": "import os",
    }.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    made = import_graph.graph(package)
    assert import_graph.circles(made) == ["p.a -> p.b -> p.room.c -> p.a", "p.room.d -> p.room.e -> p.room.d"]
    assert import_graph.circles({**made, "p.room.c": set(), "p.room.e": set()}) == []
    assert import_graph.folders({**made, "p.room.c": set()})["p.room"] == {"p.a"}


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
    return ast.unparse(call.func) in (
        "self.real.read_text",  # a distribution's metadata
        "opener.open",  # an address
        "os.open",  # a descriptor, which knows no text
    )
