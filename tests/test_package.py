"""What installing lynx-moe into somebody's vLLM environment brings, and that it changes nothing of theirs."""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from places import ROOT

from lynx_moe.policies import POLICIES


def test_the_base_install_brings_no_engine_and_fits_what_vllm_installs() -> None:
    """Every base requirement is met by what vLLM's own environment holds, so pip has nothing to up- or downgrade."""
    base = [r for r in map(Requirement, metadata.requires("lynx-moe") or []) if r.marker is None]
    assert {r.name for r in base} == {"torch", "numpy", "typer", "rich"}
    for requirement in base:
        assert requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
        assert not any(s.operator in ("==", "<", "<=", "~=") for s in requirement.specifier), (
            "an upper bound downgrades"
        )


def test_vllm_and_the_shell_find_the_package() -> None:
    plugins = {e.name: e for e in metadata.entry_points(group="vllm.general_plugins")}
    scripts = {e.name: e for e in metadata.entry_points(group="console_scripts")}
    assert callable(plugins["lynx_moe"].load())
    assert callable(scripts["lynx-moe"].load())


def test_the_wheel_installs_into_an_empty_environment_and_lists_the_policies(tmp_path: Path) -> None:
    """`make wheel`, but built with this environment's setuptools: no network. torch, typer and rich are lent by a .pth
    line, which does not run the .pth files beside them, so nothing of the clone is seen."""
    source = tmp_path / "source"  # a copy: setuptools would leave build/ in the clone, and take old files from there
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "-q"]
    clean: dict[str, str] = {"PATH": ""}  # no PYTHONPATH, in which a clone would count as installed
    subprocess.run([*pip, "--no-index", "--no-deps", str(wheel)], check=True, timeout=300, env=clean)
    (site,) = (tmp_path / "empty/lib").glob("python3*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120, "check": True, "env": clean}
    listed = subprocess.run([tmp_path / "empty/bin/lynx-moe", "policies"], **run)  # type: ignore[call-overload]
    assert all(f"  {name} " in listed.stdout for name in POLICIES)
    where = "import lynx_moe.lab.profile.show as p, pathlib; print(*pathlib.Path(p.__file__).parent.glob('*.jinja'))"
    page = subprocess.run([python, "-c", where], **run).stdout.strip()  # type: ignore[call-overload]
    assert page.startswith(str(tmp_path / "empty")), page
    assert page.endswith(".jinja")


def test_nothing_promises_an_index() -> None:
    """Nothing is published: `pip install lynx-moe` would fail, or bring somebody else's package. An extra is installed
    from a clone, as '.[eval]'."""
    said = ("*.md", "docs/**/*.md", "examples/*.py", "models/**/*.md", "src/**/*.py", "Makefile", "pyproject.toml")
    texts = {file: file.read_text() for pattern in said for file in ROOT.glob(pattern)}
    promise = re.compile(r"""(?:pip|uv)\b[^\n`]* (?:install|add)[^\n`]* ["']?lynx[-_]moe(?![-\w./*])|lynx[-_]moe\[""")
    assert promise.search("pip install lynx-moe")
    assert not promise.search("pip install dist/lynx_moe-*.whl")
    assert {str(file.relative_to(ROOT)): m[0] for file, text in texts.items() if (m := promise.search(text))} == {}
