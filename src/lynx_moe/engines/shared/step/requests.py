"""What requests ask for, where the model runs: the wish of every running request (`wishes.py`) -> its policy.

It was checked before the request got here. What still is not understood here, or does not fit
a layer, keeps the model's routing, with a warning: an engine does not end for one request.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from lynx_moe.engines.shared.options import EXACT, KEY, Serving
from lynx_moe.engines.shared.step import wishes
from lynx_moe.engines.shared.step.rows import EXACT_ROW, OWN_ROW, Asked
from lynx_moe.policies import Policy

logger = logging.getLogger(f"vllm.{KEY}")
KEPT = 64  # policies that are remembered beyond the requests that brought them
Fitted = tuple[Policy, list[Policy]]  # the policy, and each layer's


class Requests:
    """The running requests that ask for something, and the policies of the current step in the order in which they
    settle. `make` fits a spec to the model's layers, or raises; `server` is the server's policy."""

    def __init__(self, options: Serving, make: Callable[[str], Fitted], server: Callable[[], Fitted]) -> None:
        self.options, self.make, self.server = options, make, server
        self.specs: dict[str, str] = {}  # of those that ask for another policy than the server's
        self.verify: dict[str, bool] = {}  # of those whose drafts are verified otherwise than the server's: remapped?
        self.made: dict[str, Fitted | None] = {}
        self.step: list[Fitted] = []
        self.asked, self.kin = Asked(), True  # kin: the first policy of `step` is the server's, at whatever prices

    def begin(self, name: str, sampling_params: Any) -> None:
        """A request is new, or the next part of its stream goes on."""
        spec = wishes.understood(sampling_params, self.options)
        if spec is not None:
            self.specs[name] = spec
        elif self.specs:
            self.specs.pop(name, None)
        remaps = wishes.remaps_drafts(sampling_params, self.options)
        if remaps != self.options.remaps_drafts:
            self.verify[name] = remaps
        elif self.verify:
            self.verify.pop(name, None)

    def end(self, names: Iterable[str]) -> None:
        """These requests have ended."""
        if self.specs or self.verify:
            for name in names:
                self.specs.pop(name, None)
                self.verify.pop(name, None)

    def choices(self, req_ids: Sequence[str]) -> np.ndarray | None:
        """int [R]: each request's place in `step`, EXACT_ROW where it stays exact by its own wish, OWN_ROW where
        the server's policy changes nothing. None: all follow the server's policy. `asked` then says at what prices."""
        server = self.server()
        verify = self.remaps_drafts(req_ids)
        self.step, self.asked, self.kin = [], Asked(price=server[0].asks, verify=verify), True
        if not self.specs:
            return None
        wanted = [self.policy(self.specs[name]) if name in self.specs else server for name in req_ids]
        if all(each is not None and each[0] is server[0] for each in wanted):
            return None
        acting = [each for each in wanted if each is not None and not each[0].is_identity]
        found: dict[str, Fitted] = {}  # what is left of policies without their prices -> one of them
        for each in sorted(acting, key=lambda each: (each[0] is not server[0], each[0].spec)):
            found.setdefault(_without_price(each), each)
        order = sorted(found, key=lambda spec: (spec != _without_price(server), spec))
        self.step = [found[spec] for spec in order]
        self.kin = bool(order) and order[0] == _without_price(server)
        place = {spec: number for number, spec in enumerate(order)}
        self.asked = Asked(
            price=np.array([0.0 if each is None else each[0].asks for each in wanted], dtype=np.float32),
            mixed=any(each[0].asks != found[_without_price(each)][0].asks for each in acting),
            server_R=np.array([each is not None and each[0] is server[0] for each in wanted]),
            verify=verify,
        )

        def number(fitted: Fitted | None) -> int:
            if fitted is None:
                return EXACT_ROW
            if fitted[0].is_identity:
                return OWN_ROW if fitted[0] is server[0] else EXACT_ROW
            return place[_without_price(fitted)]

        return np.array([number(each) for each in wanted])

    def exact(self, req_ids: Sequence[str]) -> np.ndarray:
        """bool [R]: who is exact by its own wish, whatever the server's policy is."""
        return np.array([name in self.specs and self._is_exact(self.specs[name]) for name in req_ids])

    def remaps_drafts(self, req_ids: Sequence[str]) -> bool | np.ndarray:
        """Whether rows that verify drafts may be remapped: of all requests, or bool [R]."""
        usual = self.options.remaps_drafts
        if not any(name in self.verify for name in req_ids):
            return usual
        return np.array([self.verify.get(name, usual) for name in req_ids])

    def policy(self, spec: str) -> Fitted | None:
        """The fitted policy of a spec; None: exact."""
        if spec == EXACT:
            return None
        if spec not in self.made:
            if len(self.made) >= KEPT:
                self.made.clear()
            self.made[spec] = self._make(spec)
        return self.made[spec]

    def _is_exact(self, spec: str) -> bool:
        fits = self.policy(spec)
        return fits is None or fits[0].is_identity

    def _make(self, spec: str) -> Fitted | None:
        try:
            return self.make(spec)
        except Exception as error:  # whatever it is, it is not the other requests'
            logger.warning("%s: requests that ask for %r stay exact: %s", KEY, spec, str(error).partition("\n")[0])
            return None


def _without_price(fitted: Fitted) -> str:
    """What requests that can be decided together share."""
    return fitted[0].without_price().spec
