"""Where the models lie: `$LYNX_MOE_MODELS` first, then the `models/` folder of the source checkout, then the cache, for
what is built on this machine and not shipped."""

import os
from pathlib import Path

CARVED = "carved"


def cache_root() -> Path:
    """`$LYNX_MOE_CACHE`, or `lynx-moe` in the user's cache folder."""
    if os.environ.get("LYNX_MOE_CACHE"):
        return Path(os.environ["LYNX_MOE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lynx-moe"


def model_roots() -> list[Path]:
    """The folders that are searched, in this order."""
    roots = [Path(os.environ["LYNX_MOE_MODELS"])] if os.environ.get("LYNX_MOE_MODELS") else []
    return [*roots, Path(__file__).resolve().parents[3] / "models", cache_root()]


def path(name: str) -> Path:
    """Folder of the trained model `name`, loadable with `from_pretrained`.

    Raises ValueError when no searched folder holds it; the message lists the folders and the names found there.
    """
    roots = model_roots()
    for root in roots:
        if (root / name / "config.json").is_file():
            return root / name
    found = sorted({config.parent.name for root in roots for config in root.glob("*/config.json")})
    searched = " and ".join(str(root) for root in roots)
    if name == CARVED:
        raise ValueError(f"no {name!r} in {searched}; build it: lynx-moe testbed carve")
    raise ValueError(
        f"no trained model {name!r} in {searched} (found: {', '.join(found) or 'none'}). "
        f"Set LYNX_MOE_MODELS to the folder that holds it, or train it: python -m lynx_moe.testbed train {name}"
    )
