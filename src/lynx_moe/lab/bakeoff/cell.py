"""One cell of a bakeoff: its settings decoded on its batches, as many settings in a forward as memory allows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lynx_moe.engines.transformers import apply
from lynx_moe.lab.bakeoff.grids import ORACLE, Setting, needs_calibration
from lynx_moe.lab.bakeoff.oracle import Oracle
from lynx_moe.lab.bakeoff.together import Loads, together
from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.lab.fidelity import memory
from lynx_moe.lab.fidelity.lockstep import decode_together
from lynx_moe.lab.shared import memory as machine
from lynx_moe.lab.shared.documents import Batch
from lynx_moe.lab.shared.pieces import Pieces
from lynx_moe.lab.shared.progress import Progress
from lynx_moe.routing import Rows

Line = dict[str, Any]
ROWS = 4096  # of one forward at most


class Bench(NamedTuple):
    """What all cells are measured on and by: the model, what it takes, bytes it may take, the record, who is told; and
    where requests verify drafts, the chance of each of their rows that its token is committed."""

    model: Any
    sizes: memory.Sizes
    limit: int | None
    path: Path
    tell: Callable[[str], None]
    chances: tuple[float, ...] = (1.0,)


def cell(bench: Bench, cut: Sequence[Batch], wanted: Sequence[Setting], about: Line) -> tuple[list[Line], Pieces]:
    """A line per setting on these batches, and the pieces that they are made of, to be forgotten once they are saved.
    What was decoded before a kill is not decoded again."""
    pieces, size, places = Pieces(bench.path, about), settings_at_once(bench, cut), range(len(cut))
    groups = [[one for one in wanted if (one.method == ORACLE) is seen] for seen in (False, True)]
    parts = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
    jobs = [(part, [n for n in places if not pieces.has([one.spec for one in part], n)]) for part in parts]
    progress = Progress(bench.tell, sum(cut[place].num_steps for _, missing in jobs for place in missing))
    for part, missing in jobs:
        if not missing:
            continue
        device = next(bench.model.parameters()).device
        run, loads = (seer if part[0].method == ORACLE else deciders)(bench.model, part)
        for place in missing:
            loads.reset()
            if len(bench.chances) > 1:
                run.rows = drafted(len(cut[place].members), len(part) + 1, bench.chances, device)
            effects = decode_together(bench.model, cut[place], run, len(part) + 1, progress.step, bench.chances)
            each = zip(part, effects, loads.means()[1:], strict=True)
            pieces.add(place, {one.spec: fidelity.means(e) | {"before": b, "after": a} for one, e, (b, a) in each})
    return [
        about | _line(cut, setting, [pieces.find(setting.spec, n) or {} for n in places]) for setting in wanted
    ], pieces


def _line(cut: Sequence[Batch], setting: Setting, pieces: Sequence[Line]) -> Line:
    name = setting.method.partition(" ")[0]
    steps = [batch.num_steps for batch in cut]
    loads = {
        key: sum(piece[key] * num for piece, num in zip(pieces, steps, strict=True)) / sum(steps)
        for key in ("before", "after")
    }
    line = {"policy": name, "method": setting.method, "spec": setting.spec, "calibrated": needs_calibration(name)}
    return line | loads | fidelity.of_pieces(cut, pieces)


def settings_at_once(bench: Bench, cut: Sequence[Batch]) -> int:
    """How many settings decode beside the exact model in one forward. Raises ValueError where not even one can."""
    rows, each = len(cut[0].members) * len(bench.chances), len(bench.chances)
    largest = memory.largest(cut, bench.sizes)
    one = bench.sizes.need(largest, 2, 2, each)
    lower = f"{memory.LOWER}, {memory.RAISE}"
    machine.refuse_above(bench.limit, one, f"batch {rows // each} under one policy beside the exact model", lower)
    most = max(2, ROWS // rows)
    fits = (
        num
        for num in range(most, 2, -1)
        if sum(bench.sizes.need(largest, num, num, each).values()) <= (bench.limit or 0)
    )
    return (most if bench.limit is None else next(fits, 2)) - 1


def deciders(model: Any, part: Sequence[Setting]) -> tuple[Any, Loads]:
    """What acts in a forward for these settings of policies, and where it counts."""
    policy = together([setting.spec for setting in part])
    return apply(model, policy), policy.loads


def drafted(size: int, num: int, chances: Sequence[float], device: torch.device) -> Rows:
    """The rows of so many settings side by side, each with `size` requests that verify a draft."""
    depth_T = torch.arange(len(chances), device=device).repeat(size * num)
    request_T = torch.arange(size, device=device).repeat_interleave(len(chances)).repeat(num)
    chance_T = torch.tensor(chances, dtype=torch.float32, device=device)[depth_T]
    return Rows(request=request_T, depth=depth_T, chance=chance_T)


def seer(model: Any, part: Sequence[Setting]) -> tuple[Any, Loads]:
    """The same for settings of the oracle."""
    oracle = Oracle(model, [float(setting.spec.partition("=")[2]) for setting in part])
    return oracle, oracle.loads


def unseen(model: Any) -> str | None:
    """Why an oracle cannot see the experts' outputs, if it cannot."""
    try:
        Oracle(model, (0.0,))
    except ValueError as error:
        return str(error)
    return None
