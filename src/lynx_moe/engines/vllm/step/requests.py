"""What requests ask for, on a worker: `SamplingParams.extra_args["lynx_moe"]` of every running request -> its policy.

Admission has checked it (`admission.py`, in the front-end process). What still does not fit a layer here keeps the
model's routing, with a warning: an engine does not fail for one request.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lynx_moe.engines.vllm.launch.options import EXACT, KEY, Options, asked
from lynx_moe.engines.vllm.step.rows import EXACT_ROW, OWN_ROW
from lynx_moe.policies import Policy

logger = logging.getLogger(f"vllm.{KEY}")
KEPT = 64  # policies that are remembered beyond the requests that brought them
Fitted = tuple[Policy, list[Policy]]  # the policy, and each layer's


class Requests:
    """The running requests that ask for something, and the policies of the current step in the order in which they
    settle. `make` fits a spec to the model's layers and raises ValueError; `server` is the server's policy."""

    def __init__(self, options: Options, make: Callable[[str], Fitted], server: Callable[[], Fitted]) -> None:
        self.options, self.make, self.server = options, make, server
        self.labels: dict[str, str] = {}
        self.made: dict[str, Fitted | None] = {}
        self.step: list[Fitted] = []

    def update(self, scheduler_output: Any) -> None:
        """Takes up what the scheduler says of new and finished requests."""
        if self.labels:
            for name in scheduler_output.finished_req_ids:
                self.labels.pop(name, None)
        for new in scheduler_output.scheduled_new_reqs:
            label = asked(new.sampling_params)
            if label is not None:
                self.labels[new.req_id] = label
            elif self.labels:
                self.labels.pop(new.req_id, None)

    def choices(self, req_ids: Sequence[str]) -> np.ndarray | None:
        """int [R]: each request's place in `step`, EXACT_ROW where it stays exact by its own wish, OWN_ROW where
        the server's policy changes nothing. None: all follow the server's policy."""
        self.step = []
        if not self.labels:
            return None
        server = self.server()
        wanted = [self.policy(self.labels[name]) if name in self.labels else server for name in req_ids]
        if all(each is not None and each[0] is server[0] for each in wanted):
            return None
        found = {each[0].spec: each for each in wanted if each is not None and not each[0].is_identity}
        order = sorted(found, key=lambda spec: (spec != server[0].spec, spec))
        self.step = [found[spec] for spec in order]
        place = {spec: number for number, spec in enumerate(order)}

        def number(fitted: Fitted | None) -> int:
            if fitted is None:
                return EXACT_ROW
            return place.get(fitted[0].spec, OWN_ROW if fitted[0] is server[0] else EXACT_ROW)

        return np.array([number(each) for each in wanted])

    def policy(self, label: str) -> Fitted | None:
        """The fitted policy that a request asks for; None: exact."""
        spec = self.options.named.get(label, label)
        if spec is None:
            return self.server()
        if spec == EXACT:
            return None
        if spec not in self.made:
            if len(self.made) >= KEPT:
                self.made.clear()
            self.made[spec] = self._make(spec)
        return self.made[spec]

    def _make(self, spec: str) -> Fitted | None:
        try:
            return self.make(spec)
        except ValueError as error:
            logger.warning("%s: requests that ask for %r stay exact: %s", KEY, spec, error)
            return None
