"""What installing lynx-moe into somebody's vLLM environment brings, and that it changes nothing of theirs."""

from importlib import metadata

from packaging.requirements import Requirement


def test_the_base_install_brings_no_engine_and_fits_what_vllm_installs() -> None:
    """Every base requirement is met by what vLLM's own environment holds, so pip has nothing to up- or downgrade."""
    base = [r for r in map(Requirement, metadata.requires("lynx-moe") or []) if r.marker is None]
    assert {r.name for r in base} == {"torch", "typer", "rich"}
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
