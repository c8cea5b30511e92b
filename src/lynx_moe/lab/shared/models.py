"""Models as commands are told of them, and why an engine could not load one, in the words of our own options."""

import re
from pathlib import Path


def named(model: str) -> str:
    """A folder or hub name as it is; a plain name is a testbed model's. Raises ValueError where there is none."""
    from lynx_moe.testbed import path

    return model if Path(model).is_dir() or "/" in model else str(path(model))


def unloadable(engine: str, model: str, error: Exception) -> str:
    """One line. Code that comes with the model, and an unknown name among --model-args, get the option that helps."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return f"{engine} does not run the code of {model!r} unasked; read it, then add --trust-remote-code"
    if found := re.search(r"unexpected keyword argument '(\w+)'", text):
        return f"{engine} knows no {found[1]!r}: is a name in --model-args misspelt? ({text})"
    return f"{engine} cannot load {model!r}: {text}"
