"""The documents: the site builds without a warning, what they name exists, the reference lists all that there is."""

import contextlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import commands_page
import pytest
import typer
from places import DOCS, REFERENCE, ROOT

from lynx_moe.cli import app
from lynx_moe.control.options import GuardOptions
from lynx_moe.engines.shared.families import FAMILIES
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.policies import POLICIES

PAGES = sorted([*ROOT.glob("*.md"), ROOT / "examples/README.md", ROOT / "models/README.md", *DOCS.rglob("*.md")])
NAMED = ("src/lynx_moe", "tests", "tests/helpers", "src/lynx_moe/engines", "")
NOT_OURS = {"cpu_moe.py", "router/cpu_router.py", "try.py", "scores.json", "demo.json", "eval.png", "profile.png"}
NOT_OURS |= {
    "params.json",
    "carve.json",
    "out/gpu/gpu.json",
    "fronts.png",
    "half.png",
    "doctor.json",
    "doctor.png",
    "timeline.png",
}  # what commands write
needs_sphinx = pytest.mark.skipif(
    importlib.util.find_spec("sphinx") is None, reason="sphinx is missing: pip install '.[docs]'"
)


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """As `make docs` does."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(source), str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@needs_sphinx
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = build(DOCS, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/guides/start.html").is_file()


@needs_sphinx
def test_a_broken_link_a_broken_anchor_and_an_orphan_fail(tmp_path: Path) -> None:
    shutil.copy(DOCS / "conf.py", tmp_path)
    (tmp_path / "index.rst").write_text("Title\n=====\n\n.. toctree::\n\n   page\n")
    (tmp_path / "page.md").write_text("# Page\n\n[a](nowhere.md) [b](#nothing) [c](#page)\n")
    (tmp_path / "orphan.md").write_text("# Orphan\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    said = done.stderr
    assert "nowhere" in said
    assert "nothing" in said
    assert "orphan.md: WARNING: document isn't included in any toctree" in said
    assert said.count("WARNING") == 3


def anchors(page: Path) -> set[str]:
    """The headings of a page, as a code host names them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    """Links, also those out of the site, their headings, and files of the source in backticks."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:", target):
            file, _, anchor = target.partition("#")
            found = page if not file else (page.parent / file).resolve()
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target
    for name in re.findall(r"`([\w./-]+\.(?:py|json|png|txt|yaml))[: `]", text):
        beside = [ROOT / folder / name for folder in NAMED] + [page.parent / name]
        known = any(file.exists() for file in beside) or ("/" not in name and any(ROOT.glob(f"[st]*/**/{name}")))
        assert known or name in NOT_OURS, name


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_every_page_is_on_the_list() -> None:
    listed = (DOCS / "README.md").read_text()
    pages = {
        str(page.relative_to(DOCS))
        for shelf in ("guides", "reference", "results")
        for page in DOCS.glob(f"{shelf}/*.md")
    }
    assert {page for page in pages if f"]({page})" not in listed} == set()


def test_a_guide_starts_with_commands() -> None:
    for guide in DOCS.glob("guides/*.md"):
        assert "```" in "".join(guide.read_text().splitlines(keepends=True)[:6]), guide.name


def test_the_commands_are_those_of_the_command_line() -> None:
    assert commands_page.PAGE.read_text() == commands_page.page(), "run: python tests/helpers/commands_page.py"


def test_the_reference_lists_every_option_metric_and_policy() -> None:
    options, metrics, policies = ((REFERENCE / f"{name}.md").read_text() for name in ("options", "metrics", "policies"))
    rows = re.findall(r"^\| (.+?) \|", options, re.M)
    assert {
        f.name for f in (*fields(Options), *fields(GuardOptions)) if not any(f"`{f.name}`" in r for r in rows)
    } == set()
    ends = re.findall(r"`([\w.]+)`", "\n".join(re.findall(r"^\| (`.+?) \|", metrics, re.M)))
    assert {
        name for name in FAMILIES if not any(name.endswith(re.sub(r"_total|_sum|^\.+", "", end)) for end in ends)
    } == set()
    assert {name for name in POLICIES if not re.search(rf"^\| `{re.escape(name)}` \|", policies, re.M)} == set()


def typed(text: str) -> list[list[str]]:
    """The words of every `lynx-moe` command in a page: in code blocks, and inline."""
    lines = re.sub(r" *\\\n\s*", " ", text)
    blocks = (
        "\n".join(re.findall(r"```sh\n(.*?)```", lines, re.S)) + "\n" + "\n".join(re.findall(r"^    .*", lines, re.M))
    )
    found = []
    for line in [*blocks.splitlines(), *re.findall(r"`(lynx-moe [^`]+)`", lines)]:
        if "lynx-moe " in line:
            for part in re.split(r" && |; | \| | & ?$", line):
                with contextlib.suppress(ValueError):  # the beginning of a quotation that goes on: none of our commands
                    words = shlex.split(part, comments=True)
                    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                        words = words[1:]
                    if words[:1] == ["lynx-moe"] and words[1:]:
                        found.append(words[1:])
    return found


def test_a_guide_s_commands_can_be_typed_one_after_another() -> None:
    """Results that are there are never mixed with others: each command of a guide writes to a place of its own."""
    top, places = typer.main.get_command(app), {}
    for page in sorted(DOCS.glob("guides/*.md")):
        for words in typed("\n".join(re.findall(r"```sh\n.*?```", page.read_text(), re.S))):
            command = top.commands[words[0]]
            if not hasattr(command, "commands"):
                out = command.make_context(words[0], words[1:]).params.get("out")
                others = places.setdefault((words[0], str(out)), words)
                assert out is None or others == words, f"{page.name}: {words} and {others} both write to {out}"
    assert len(places) > 8


def test_every_command_in_a_page_is_taken_by_the_command_line() -> None:
    """Parsed, not run: the command exists, and so do its options. A mention without its arguments is no mistake."""
    top, seen = typer.main.get_command(app), 0
    for page in PAGES:
        for words in typed(page.read_text()):
            group, rest = top, words
            while hasattr(group, "commands") and rest and rest not in (["..."], ["--version"]):
                assert rest[0] in group.commands, f"{page.name}: {words}"
                group, rest = group.commands[rest[0]], rest[1:]
            try:
                if rest and rest not in (["[OPTIONS]"], ["..."], ["--version"]):
                    group.make_context(words[0], [word for word in rest if word != "[OPTIONS]"])
                    seen += 1
            except Exception as error:
                if type(error).__name__ not in ("MissingParameter", "BadOptionUsage"):
                    raise AssertionError(f"{page.name}: {words}: {error}") from error
    assert seen > 60
