"""Who imports whom in a package, read from its sources: imports inside functions and for type checkers count too.

The packages around a module, which Python runs first, are no imports of it: else every package that offers names of
its own modules would be a circle.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

Graph = Mapping[str, set[str]]


def graph(root: Path) -> dict[str, set[str]]:
    """The modules of the package in the folder `root`, by their full names -> those of them that each imports."""
    files = {name_of(path, root): path for path in sorted(root.rglob("*.py"))}
    made = {}
    for name, path in files.items():
        found = (next((known for known in names if known in files), name) for names in imports(path))
        made[name] = set(found) - {name}
    return made


def name_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """Of every import in a file what it may name, best first: `from a import b` is the module a.b, or a name in a."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}, line {node.lineno}: imports are written in full here"
            yield from ((f"{node.module}.{alias.name}", f"{node.module}") for alias in node.names)


def folders(modules: Graph) -> dict[str, set[str]]:
    """The same between the folders that hold the modules; those in the package's own folder stand for themselves."""
    packages = {name.rpartition(".")[0] for name in modules}

    def folder(name: str) -> str:
        return name if name in packages or name.count(".") < 2 else name.rpartition(".")[0]

    made: dict[str, set[str]] = {folder(name): set() for name in modules}
    for name, used in modules.items():
        made[folder(name)] |= {folder(other) for other in used} - {folder(name)}
    return made


def circles(given: Graph) -> list[str]:
    """Of every set that all reach one another (a strongly connected component), its shortest circle: "a -> b -> a"."""
    came = {name: _came(name, given) for name in given}
    found, left = [], sorted(given)
    while left:
        start = left[0]
        ways = [_way(start, last, came[start]) for last in came[start] if start in given[last]]
        if ways:
            found.append(" -> ".join([*min(ways, key=len), start]))
        left = [name for name in left if name != start and not (name in came[start] and start in came[name])]
    return found


def _came(start: str, given: Graph) -> dict[str, str]:
    """Every name that imports lead to -> the one before it on a shortest way."""
    came, queue = {start: ""}, [start]
    for here in queue:
        new = sorted(given[here] - came.keys())
        came |= dict.fromkeys(new, here)
        queue += new
    return came


def _way(start: str, end: str, came: dict[str, str]) -> list[str]:
    way = [end]
    while way[0] != start:
        way.insert(0, came[way[0]])
    return way
