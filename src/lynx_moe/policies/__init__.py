"""Which experts stay: one file per published method, and the table that names them."""

import difflib
import types
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any, get_args, get_type_hints

from lynx_moe.policies.contract.policy import SHARED, ModelShape, Policy
from lynx_moe.policies.contract.ranked import ONE_RANK, Placement
from lynx_moe.policies.controls.random import Random
from lynx_moe.policies.controls.vanilla import Vanilla
from lynx_moe.policies.priced import Priced
from lynx_moe.policies.published.alloc import Alloc
from lynx_moe.policies.published.cached.cache_prior import CachePrior
from lynx_moe.policies.published.cached.drop_on_miss import DropOnMiss
from lynx_moe.policies.published.drafts.acceptmoe import AcceptMoe
from lynx_moe.policies.published.drafts.moe_spec import MoeSpec
from lynx_moe.policies.published.exfold import ExFold
from lynx_moe.policies.published.lynx import Lynx
from lynx_moe.policies.published.lynx_v1 import LynxV1
from lynx_moe.policies.published.min_p import MinP
from lynx_moe.policies.published.naee import Naee
from lynx_moe.policies.published.oea import Oea
from lynx_moe.policies.published.reap import Reap
from lynx_moe.policies.published.sere import Sere
from lynx_moe.policies.published.topk import TopK
from lynx_moe.policies.published.xshare import XShare

POLICIES: dict[str, type[Policy]] = {
    p.name: p
    for p in (
        *(Vanilla, Priced, Lynx, LynxV1, Oea, XShare, Sere, ExFold, TopK, Alloc),
        *(Naee, MinP, Reap, MoeSpec, AcceptMoe, CachePrior, DropOnMiss, Random),
    )
}

DEFAULT = "priced"  # where a command is told no policy: the lowest KL at a share of experts (docs/results/bakeoff.md)

__all__ = ["DEFAULT", "ONE_RANK", "POLICIES", "SHARED", "ModelShape", "Placement", "Policy", "knobs", "make_policy"]


def knobs(policy: type[Policy]) -> dict[str, tuple[type, Any]]:
    """A policy's knobs: name -> (type, default), the default being MISSING where one must be given."""
    hints = get_type_hints(policy)
    return {f.name: (_plain(hints[f.name]), f.default) for f in policy.knob_fields()}


def make_policy(spec: str, table: Mapping[str, type[Policy]] = POLICIES) -> Policy:
    """The policy of `table` that a spec string names: `name` or `name:knob=value,knob=value`.

    The first `=` ends a knob's name, so its value may hold one (norm=k2=8); a comma ends the value.
    Raises ValueError that says what was given, what is allowed and the nearest valid name.
    """
    if not isinstance(spec, str):
        raise ValueError(f"a policy is named by a spec string, such as 'priced:price=0.03', not by {spec!r}")
    if not spec.isprintable():  # specs come over HTTP, and messages that quote them go to logs
        raise ValueError(f"the spec {spec!r} holds signs that cannot be printed, such as a line break; leave them out")
    name, _, rest = spec.strip().partition(":")
    if name not in table:
        raise ValueError(f"unknown policy {name!r} in {spec!r}{_nearest(name, list(table))}")
    allowed = knobs(table[name])
    given: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, text = (p.strip() for p in (part.partition("=")[::2]))
        if key not in allowed:
            raise ValueError(f"{name} has no knob {key!r} in {spec!r}{_nearest(key, list(allowed))}")
        if key in given:
            raise ValueError(f"{name}: knob {key!r} is given twice in {spec!r}")
        if not text:
            raise ValueError(f"{name}: {part!r} in {spec!r} lacks a value; write {key}=VALUE")
        given[key] = _parse(name, key, text, allowed[key][0])
    missing = [key for key, (_, default) in allowed.items() if default is MISSING and key not in given]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}: write {name}:{','.join(f'{k}=VALUE' for k in missing)}")
    return table[name](**given)


def _parse(name: str, key: str, text: str, kind: type) -> Any:
    words = {"true": True, "false": False}
    try:
        return words[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        what = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise ValueError(f"{name}: {key}={text} must be {what}") from None


def _plain(hint: Any) -> type:
    """`int` of `int | None`."""
    kinds: list[type] = [t for t in get_args(hint) or (hint,) if t is not types.NoneType]
    return kinds[0]


def _nearest(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} allowed: {', '.join(names) or 'none'}" if hint else f"; allowed: {', '.join(names) or 'none'}"
