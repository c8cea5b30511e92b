"""What a command says when it fails: one line for what a user can mend, a traceback for a fault of ours."""

import re
from importlib import metadata

FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)


def is_fault(error: Exception) -> bool:
    """Whether code is wrong, not what it was given. Libraries raise kinds of their own, or ValueError, RuntimeError and
    OSError for what they are given; where one raises a kind of FAULTS, our caller of it says what was meant."""
    return isinstance(error, (*FAULTS, RecursionError))


def line(error: Exception) -> str:
    """The message in one line, with its kind where that says more, and what to install where a package is missing."""
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name:
        return missing(error.name)
    if isinstance(error, (ValueError, RuntimeError, OSError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def missing(module: str) -> str:
    """Which package holds a module that is not here, and with which extra of ours it comes."""
    top = module.partition(".")[0]
    if top == "vllm":
        return "vLLM is not installed here; install vllm, or on a machine without GPU the extra [cpu] of lynx-moe"
    for requirement in _requirements():
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if name.lower().replace("-", "_") == top.lower() and extra:
            wanted = requirement.partition(";")[0].strip()
            return (
                f"this command needs {top}, which is not installed: pip install '{wanted}', or the extra [{extra[1]}]"
            )
    return f"this command needs {top}, which is not installed: pip install {top}"


def _requirements() -> list[str]:
    """Of the installed lynx-moe; none are known in a clone that is not installed."""
    try:
        return metadata.requires("lynx-moe") or []
    except metadata.PackageNotFoundError:
        return []
