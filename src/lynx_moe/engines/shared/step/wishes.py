"""What a request's wish means, in every process: what is not understood here is refused by the front end, and is exact
in the engine, which does not end for one request.

A request asks by the key "lynx_moe" among the arguments that engines hand on for plug-ins (`CARRIERS`): "exact", a name
(`Serving.named`), a price (0.05 or "0.05"), or a spec string of its own. How its drafts are verified it asks by
"lynx_moe_verify": "exact" or "remap".
"""

import difflib
import logging
import re
from collections.abc import Collection
from typing import Any

from lynx_moe.engines.shared.options import DRAFT, EXACT, KEY, REMAP, Serving
from lynx_moe.policies import DEFAULT, Policy, make_policy

VERIFY_KEY = f"{KEY}_verify"
KEYS = (KEY, VERIFY_KEY)
CARRIERS = ("extra_args", "custom_params")  # of sampling parameters: vLLM's, SGLang's
LONGEST = 300  # characters of a wish
SHORT = KEY.partition("_")[0]
CLOSE = {KEY: 0.8, SHORT: 0.75}  # how alike two words must be: one wrong letter of a short word is much of it

logger = logging.getLogger(f"vllm.{KEY}")


def asked(sampling_params: Any) -> Any:
    """What a request asks for; None: nothing."""
    return carried(sampling_params).get(KEY)


def carried(sampling_params: Any) -> dict[Any, Any]:
    """A request's arguments for plug-ins."""
    return next((given for name in CARRIERS if (given := getattr(sampling_params, name, None))), {})


def asked_verify(sampling_params: Any) -> str | None:
    """How a request asks its drafts to be verified; None: not at all. Raises ValueError for what it may not ask."""
    wish = carried(sampling_params).get(VERIFY_KEY)
    if wish is None or wish in (EXACT, REMAP):
        return wish
    own = "; the model that drafts serves all requests, so what it does is the server's option" if wish == DRAFT else ""
    raise ValueError(f"{VERIFY_KEY}: {repr(wish)[:50]} must be {EXACT!r} or {REMAP!r}{own}")


def misspelt(names: Any) -> str | None:
    """The first of these names that is no key but was meant to be; None: there is none."""
    return next((name for name in names or () if isinstance(name, str) and name not in KEYS and _is_near(name)), None)


def first_key(names: Any) -> str | None:
    """The first of these names that asks for something, or was meant to; None: there is none."""
    return next((key for key in KEYS if key in (names or ())), None) or misspelt(names)


def check_keys(sampling_params: Any) -> None:
    """Raises ValueError if a request asks by a misspelt key, or for a verification that is none; keys of other plug-ins
    pass."""
    wrong = misspelt(carried(sampling_params))
    if wrong is not None:
        raise ValueError(f"{KEY}: the key {wrong[:50]!r} asks for nothing; write {KEY!r}, or leave it out")
    asked_verify(sampling_params)


def spec_of(wish: Any, options: Serving) -> str | None:
    """The spec that a wish means, or EXACT; None: the server's policy, whatever it is at the time. Raises ValueError
    for what is no wish, or one that a request may not have.

    A number is a price of the server's policy, where that knows prices, else of `priced`."""
    price = price_of(wish)
    if price is None and not isinstance(wish, str):
        raise ValueError(f"{repr(wish)[:50]} must be a string, or a price such as 0.05")
    if isinstance(wish, str):
        if len(wish) > LONGEST:
            raise ValueError(f"{wish[:20]!r}... is longer than {LONGEST} characters")
        if wish == EXACT or wish in options.named:
            return options.named.get(wish, EXACT)
    if price is not None:
        if not 0 <= price < float("inf"):
            raise ValueError(f"{repr(wish)[:50]} is no price: it must be finite, 0 (exact) or more, such as 0.05")
        policy = options.make_policy()
        if policy.at_price(2.0).asks != 2.0:  # it knows none
            policy = make_policy(DEFAULT)
        return policy.at_price(price).spec if price else EXACT
    spec = str(wish)
    if make_policy(spec).calibration_file is not None:
        raise ValueError(f"{wish!r}: only the operator's presets may name files")
    return spec


def price_of(wish: Any) -> float | None:
    """The number that a wish is, or that its text is; None: it is no number."""
    if isinstance(wish, bool) or not isinstance(wish, str | int | float):
        return None
    try:
        return float(wish)
    except ValueError:
        return None
    except OverflowError:  # of a whole number
        return float("inf")


def understood(sampling_params: Any, options: Serving, *, aloud: bool = True) -> str | None:
    """`spec_of` what a request asks for, in the engine's process: never raises, EXACT for what is not understood.
    `aloud`: with a warning."""
    try:
        check_keys(sampling_params)
        wish = asked(sampling_params)
        return None if wish is None else spec_of(wish, options)
    except Exception as error:  # whatever it is: an engine does not end for one request
        if aloud:
            logger.warning("%s: a request stays exact: %s", KEY, str(error).partition("\n")[0])
        return EXACT


def brings(wish: Any, policy: Policy, options: Serving) -> bool:
    """Whether a wish, which means this policy, is one of the `max_policies` that running requests may bring: it is none
    by name, and not decided together with the server's at a price of its own."""
    if (isinstance(wish, str) and wish in options.named) or policy.is_identity:
        return False
    return not (options.max_policies and policy.knows_prices and together(options.policy, policy))


def too_many(wish: Any, others: Collection[str], options: Serving) -> str | None:
    """Why a wish that brings a policy is one too many beside the specs that others have brought; None: it is not."""
    if len(others) < options.max_policies:
        return None
    return (
        f"{wish!r}: the running requests may bring max_policies={options.max_policies} specs of their own, and bring "
        f"{', '.join(sorted(others)) or 'none'}"
    )


def together(spec: str, policy: Policy) -> bool:
    """Whether a policy and that of the spec are the same but for their prices."""
    return make_policy(spec).without_price() == policy.without_price()


def allowed(options: Serving) -> str:
    """What a request may ask for, in words."""
    own = ", a price such as 0.05, or a policy's spec such as lynx:alpha=3,beta=2" if options.max_policies else ""
    return f"{', '.join((EXACT, *options.named))}{own}"


def remaps_drafts(sampling_params: Any, options: Serving) -> bool:
    """Whether rows that verify a request's drafts may be remapped, as far as that is its own or the server's choice."""
    try:
        wish = asked_verify(sampling_params)
        return options.remaps_drafts if wish is None else wish == REMAP
    except ValueError:  # the request is exact then
        return False


def _is_near(name: str) -> bool:
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)]
    if SHORT in words or KEY.replace("_", "") in "".join(words):
        return True
    whole = "".join(words)
    return any(
        difflib.SequenceMatcher(None, whole, ours.replace("_", "")).ratio() >= close for ours, close in CLOSE.items()
    )
