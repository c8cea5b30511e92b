"""Plain text for bits per byte: Python source and English prose that a normal installation already holds.

Python is the standard library of the running interpreter (PSF licence). English is the prose of the language reference
that ships inside it (`pydoc_data`) and of the docstrings of the packages in `PROSE_PACKAGES` (BSD). No download.
"""

import ast
import importlib.util
import re
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lynx_moe.testbed.tasks.split import is_held_out

PROSE_PACKAGES = ("numpy", "sympy", "networkx", "jinja2", "fsspec")
CHUNK_BYTES = 480
NOT_PROGRAMS = {"site-packages", "pydoc_data", "encodings", "ensurepip"}
SKIPPED = NOT_PROGRAMS | {"test", "tests", "idlelib", "lib2to3", "turtledemo"}
KINDS = ("english", "python")


def python_files() -> list[Path]:
    """Standard-library sources, sorted; tests, generated tables and vendored packages left out."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(f for f in root.rglob("*.py") if not SKIPPED.intersection(f.relative_to(root).parts))


def python_text() -> Iterator[str]:
    """Each source file from its first import or definition on (licence headers repeat too often to teach anything)."""
    for file in python_files():
        source = file.read_text(encoding="utf-8", errors="ignore")
        if source.isascii() and (start := re.search(r"^(import|from|def|class) ", source, re.M)):
            yield source[start.start() :]


def english_text() -> Iterator[str]:
    """Prose paragraphs: at least twelve words, mostly letters, line breaks undone."""
    from pydoc_data.topics import topics

    documents = [text for _, text in sorted(topics.items())]
    for package in PROSE_PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec and spec.origin:
            for file in sorted(Path(spec.origin).parent.rglob("*.py")):
                documents += _docstrings(file)
    seen: set[str] = set()
    for document in documents:
        for paragraph in re.split(r"\n\s*\n", document):
            prose = " ".join(paragraph.split())
            letters = sum(c.isalpha() or c in " ,.'" for c in prose)
            if prose.isascii() and len(prose.split()) >= 12 and letters > 0.94 * len(prose) and prose not in seen:
                seen.add(prose)
                yield prose


@cache
def chunks(kind: str, held_out: bool) -> tuple[str, ...]:
    """Pieces of about `CHUNK_BYTES` bytes of `kind` ("python" or "english"), one in sixteen held out by SHA-256."""
    if kind not in KINDS:
        raise ValueError(f"unknown text {kind!r}; the kinds are {KINDS}")
    if kind == "english":
        text = list(english_text())
    else:
        text = [s[i : i + CHUNK_BYTES] for s in python_text() for i in range(0, len(s), CHUNK_BYTES)]
    return tuple(t[:CHUNK_BYTES] for t in text if is_held_out(t) is held_out)


def _docstrings(file: Path) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        try:
            tree = ast.parse(file.read_text(encoding="utf-8", errors="ignore"))
        except SyntaxError:
            return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [doc for node in ast.walk(tree) if isinstance(node, kinds) and (doc := ast.get_docstring(node))]
