"""`--model-args`: names and values for the harness's class of an engine, as lm_eval takes them."""

import json
import re
from collections.abc import Collection
from typing import Any

WORDS = {"true": True, "false": False, "none": None, "null": None}
OPEN, CLOSE = "[{(", "]})"


def read(text: str, set_here: Collection[str] = ()) -> dict[str, Any]:
    """`{"name": value}`, or name=value between commas, where a value may be JSON too. Raises ValueError for neither,
    and for what a measurement sets itself."""
    found = _read(text.strip())
    if taken := sorted(found.keys() & set(set_here)):
        raise ValueError(f"--model-args cannot set {', '.join(taken)}: it is set here")
    return found


def _read(text: str) -> dict[str, Any]:
    if text.startswith("{"):
        try:
            found: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"--model-args {text!r} is not JSON ({error}); names take double quotes") from None
        return found
    pairs = [part.partition("=") for part in split(text) if part.strip()]
    for name, equals, _ in pairs:
        if not equals or not re.fullmatch(r"\s*\w+\s*", name):
            raise ValueError(f"--model-args: {name + equals!r} is no name=value; write name=value,name=value or JSON")
    return {name.strip(): value_of(value.strip()) for name, _, value in pairs}


def value_of(text: str) -> Any:
    """A word, a number or JSON as what it says; anything else is text."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def split(text: str) -> list[str]:
    """The parts between commas that stand in no bracket and no quotes."""
    parts, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == '"'
        depth += 0 if quoted else (character in OPEN) - (character in CLOSE)
        if character == "," and depth <= 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return parts
