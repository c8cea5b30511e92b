"""At which batch sizes the server's policies act: as `act_from` and `act_to` say, or a doctor's findings do."""

import json
import logging
from pathlib import Path
from typing import Any

from lynx_moe.engines.shared.options import KEY
from lynx_moe.policies import make_policy

logger = logging.getLogger("vllm.lynx_moe")
KIND = "doctor findings"
AGAIN = "make it again with `lynx-moe doctor`"


def check(act_from: Any, act_to: Any) -> None:
    """Raises ValueError unless the two are whole numbers of rows, the second none, or at least the first, or 0."""
    for name, value, least in (("act_from", act_from, 1), ("act_to", act_to, 0)):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if not whole and not (name == "act_to" and value is None):
            raise ValueError(f"{KEY}: {name}={value!r} must be a whole number of rows, {least} or more, such as 16")
    if act_to is not None and 0 < act_to < act_from:
        raise ValueError(f"{KEY}: act_from={act_from} is above act_to={act_to}; swap them, or use act_to=0 for never")


def text(act_from: int, act_to: int | None) -> str:
    """The two in words; empty: the policy always acts."""
    if act_to == 0:
        return "no step follows the policy, all are exact (act_to=0)"
    if act_from == 1 and act_to is None:
        return ""
    upper = f"{act_from} rows or more" if act_to is None else f"{act_from} to {act_to} rows"
    return f"steps of {upper} that may be remapped follow the policy, others are exact (act_from, act_to)"


def read(file: str, policy: str, model: str) -> tuple[dict[str, int], str]:
    """What a doctor's findings say of a server of this policy and model, as options, and their verdict. Raises
    ValueError, naming the file, if it is missing or broken, or is about another policy or baseline."""
    try:
        found = json.loads(Path(file).expanduser().read_bytes())
    except OSError as error:
        raise ValueError(f"doctor={file!r} cannot be read ({error.strerror}); {AGAIN}") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError(f"doctor={file!r} is no JSON, so no doctor's findings; {AGAIN}") from None
    try:
        kind, act, verdict = found["kind"], dict(found["act"]), found["verdict"]
        asked, then = make_policy(found["policy"]).spec, Path(found["settings"]["model"]).name
        baseline = make_policy(found["settings"]["beside"][0])
    except (KeyError, TypeError, AttributeError):
        kind = None
    if kind != KIND:
        raise ValueError(f"doctor={file!r} holds no doctor's findings with `act`; name its doctor.json, or {AGAIN}")
    if not baseline.is_identity:
        raise ValueError(f"doctor={file!r} compares with {baseline.spec}; doctor it with `vanilla` first in --beside")
    served = make_policy(policy).spec
    if asked != served:
        raise ValueError(f"doctor={file!r} is about {asked}, and the server's policy is {served}; doctor that one")
    if then != Path(model).name:
        logger.warning("lynx_moe: the doctor's findings are of %s; if %s has other experts, ask it anew", then, model)
    return act, str(verdict)
