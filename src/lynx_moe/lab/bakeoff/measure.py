"""The bakeoff's record: a line of settings, a line per cell and setting, and a line per policy of what deciding costs.

On the split "tune" every setting of every grid is measured, and then what lies between neighbours on a front that are
far apart (`refine`); on "test" only what is on each method's tune front or covers a wide gap of it, so that what is
reported was not chosen on the data it is reported on. The record is written after every cell, and its pieces as they
are made (`cell`). What it lacks is measured: after a kill the rest, after a policy or a grid was added its settings.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lynx_moe.calibration import artifact
from lynx_moe.lab.bakeoff.cell import Bench, cell, settings_at_once, unseen
from lynx_moe.lab.bakeoff.cost import costs
from lynx_moe.lab.bakeoff.fronts import LEAST_KL, SAME, covering, grouped
from lynx_moe.lab.bakeoff.grids import NORMS, ORACLE, Setting, settings
from lynx_moe.lab.bakeoff.refine import NEAR, ROUNDS, refinements
from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.lab.fidelity import memory, repeats
from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared import memory as machine
from lynx_moe.lab.shared.documents import MIXES, Batch, Document, batches
from lynx_moe.testbed.tasks import TASKS

Line = dict[str, Any]
SPLITS = ("tune", "test")
DRAFT = "draft"  # in place of a mix: all groups, and every request verifies a draft in each step


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a result, as in `fidelity.Settings`. num_sequences: of a cell on "test", rounded to whole batches;
    "tune" has half as many. calibration: the file for calibrated policies; None leaves them out. drafts: for the mix
    DRAFT, of a drafted token at each depth the share that is committed."""

    model: str
    data: str = "testbed"
    batch_sizes: tuple[int, ...] = (4, 16, 64)
    mixes: tuple[str, ...] = MIXES
    num_sequences: int = 112
    prefix: int = 32
    steps: int = 32
    seed: int = 0
    dtype: str = "auto"
    norms: tuple[str, ...] = NORMS
    calibration: str | None = None
    trust_remote_code: bool | None = None
    drafts: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self.of(SPLITS[0])
        if (DRAFT in self.mixes) != bool(self.drafts):
            raise ValueError(
                f"--drafts goes with --mixes {DRAFT}: name both, such as --drafts 0.7,0.5,0.35, or neither"
            )
        if self.calibration is not None:
            about = artifact.load(self.calibration).provenance
            if about.data.startswith(f"{self.data}, split all"):
                raise ValueError(f"{self.calibration} was measured on all of {self.data}; calibrate on its own split")
            if self.data != "testbed" and about.data.startswith(f"{self.data}, split calibrate,"):
                raise ValueError(f"{self.calibration} was measured when splits of a file overlapped; calibrate again")

    def chances(self, mix: str) -> tuple[float, ...]:
        """Of each row of a request in a step, that its token is committed."""
        return (1.0, *(self.drafts or ())) if mix == DRAFT else (1.0,)

    def of(self, split: str) -> fidelity.Settings:
        """The documents' settings: enough of them for a full batch of every group. Raises ValueError as these do."""
        own = ("norms", "calibration", "drafts")
        given = {key: value for key, value in asdict(self).items() if key not in own}
        given["mixes"] = tuple(dict.fromkeys("mixed" if mix == DRAFT else mix for mix in self.mixes))
        most = max(self.batch_sizes, default=2)
        given["num_sequences"] = wanted = max(self.num_sequences, most)
        if self.data == "testbed":  # the same number of every task
            each = most if "one" in self.mixes else 1
            given["num_sequences"] = len(TASKS) * max(each, -(-wanted // len(TASKS)))
        return fidelity.Settings(**given, split=split)


def measure(
    given: Settings,
    path: Path,
    names: Sequence[str] = (),
    advance: Callable[[str], None] = lambda message: None,
    max_gib: float | None = None,
) -> Line:
    """Measures what the record at `path` lacks of the named policies (none named: all), and returns the whole of it.
    max_gib: memory that may be used beside the model; None: most of what is free.

    Raises ValueError for bad settings, a model without MoE layers or whose cache
    cannot be repeated, data that cannot be read or hold too little, batches that take too much memory, and a
    record of other settings.
    """
    whole = lines.begin(path, "bakeoff", asdict(given))
    cells = [(split, size, mix) for split in SPLITS for size in given.batch_sizes for mix in given.mixes]
    found = {split: fidelity.documents(given.of(split)) for split in SPLITS}
    cuts = {cell: _cut(given, found[cell[0]], *cell) for cell in cells}
    advance("loading the model")
    model, (plain,) = fidelity.open_model(given.of("tune"), ["vanilla"])
    repeats.check(model)
    router = plain.layers[0].spec
    whole_grid = settings(router, names, given.norms, given.calibration)
    if not names and (reason := unseen(model)):
        advance(f"without the oracle: {reason}")
        whole_grid = [setting for setting in whole_grid if setting.method != ORACLE]
    limit = machine.allowed(next(model.parameters()).device, max_gib)
    bench = Bench(model, memory.measured(model), limit, path, advance)
    for (_, _, mix), cut in cuts.items():
        settings_at_once(bench._replace(chances=given.chances(mix)), cut)  # what does not fit is refused now
    lines.save(whole, path)
    for number, (split, size, mix) in enumerate(cells, 1):
        what = f"{number} of {len(cells)}: {split}, {name_of(size, mix)}"
        bench = bench._replace(chances=given.chances(mix))
        grid = whole_grid if mix != DRAFT else [one for one in whole_grid if one.method != ORACLE]
        about = {"kind": "bakeoff", "split": split, "batch_size": size, "mix": mix}
        if split == "test":
            _measure(bench, whole, cuts[split, size, mix], on_front(whole, grid, size, mix), about, what)
            continue
        _measure(bench, whole, cuts[split, size, mix], grid, about | {"refined": 0}, what)
        mine = _lines_of(whole, grid, size, mix)
        for turn in range(1 + max((line["refined"] for line in mine), default=0), 1 + ROUNDS):
            if not (new := refinements(_lines_of(whole, grid, size, mix), router)):
                break
            _measure(bench, whole, cuts[split, size, mix], new, about | {"refined": turn}, f"{what}, gaps {turn}")
    timed = {line["policy"] for line in whole["results"] if line["kind"] == "cost"}
    if missing := [one for one in whole_grid if one.method not in {ORACLE, *timed} and " " not in one.method]:
        advance("timing the decisions")
        size = min(16, len(found["tune"]))
        whole["results"] += costs(model, batches(found["tune"], size, "mixed", given.seed)[-1], missing)
        lines.save(whole, path)
    return whole


def _measure(
    bench: Bench, whole: Line, cut: Sequence[Batch], wanted: Sequence[Setting], about: Line, what: str
) -> None:
    """Adds what the record lacks of these settings in a cell."""
    done = {line["spec"] for line in of_cell(whole, about["split"], about["batch_size"], about["mix"])}
    missing = [setting for setting in wanted if setting.spec not in done]
    bench.tell(f"{what}: {len(missing)} settings, {len(cut)} batches")
    new, pieces = cell(bench, cut, missing, about)
    whole["results"] += new
    lines.save(whole, bench.path)
    pieces.forget([setting.spec for setting in missing])


def _cut(given: Settings, found: Sequence[Document], split: str, size: int, mix: str) -> list[Batch]:
    """The batches of one cell. Raises ValueError if there are none."""
    num, rows = given.num_sequences // (1 + (split == "tune")) // size, len(given.chances(mix))
    whole = batches(found, size, "one" if mix == "one" else "mixed", given.seed)
    if not (cut := few([Batch(one.members, one.num_steps // rows) for one in whole if one.num_steps >= rows], num)):
        raise ValueError(f"no group of {given.data} has {size} sequences in split {split}; lower --batch-sizes")
    return cut


def of_cell(whole: Line, split: str, batch_size: int, mix: str) -> list[Line]:
    key = (split, batch_size, mix)
    found = [line for line in whole["results"] if line["kind"] == "bakeoff"]
    return [line for line in found if (line["split"], line["batch_size"], line["mix"]) == key]


def on_front(whole: Line, grid: Sequence[Setting], batch_size: int, mix: str) -> list[Setting]:
    """The settings of the grid's methods that are on their tune front of a cell, and those in its wide gaps; and of
    those that keep all, where a method has some, the one that does most."""
    found = []
    for (method,), mine in grouped(_lines_of(whole, grid, batch_size, mix), "method").items():
        keeps_all = [line for line in mine if line["after"] / line["before"] >= SAME]
        end = sorted(keeps_all, key=lambda line: -float(line["kl"]))[:1]
        mine = [line for line in mine if line not in keeps_all] + end
        kept = np.array([line["after"] / line["before"] for line in mine])
        log_kl = np.log(np.maximum([line["kl"] for line in mine], LEAST_KL))
        log_kl[kept >= SAME] = -np.inf  # it ends the front, whatever rounding says
        found += [Setting(method, mine[place]["spec"]) for place in covering(kept, log_kl, NEAR)]
    return found


def _lines_of(whole: Line, grid: Sequence[Setting], batch_size: int, mix: str) -> list[Line]:
    """The tune lines of a cell, of the methods that the grid has."""
    methods = {setting.method for setting in grid}
    return [line for line in of_cell(whole, "tune", batch_size, mix) if line["method"] in methods]


def name_of(size: int, mix: str) -> str:
    """A cell's name."""
    kinds = {"one": "one group", "mixed": "mixed", DRAFT: "verifying drafts"}
    return f"batch {size}, {kinds[mix]}"


def few(cut: list[Batch], num: int) -> list[Batch]:
    """`num` batches, at least one, evenly over all: over their lengths, or over their groups."""
    num = min(max(1, num), len(cut))
    return [cut[(2 * place + 1) * len(cut) // (2 * num)] for place in range(num)]


def tested(whole: Line) -> list[Line]:
    """The lines of the split that is reported."""
    return [line for line in whole["results"] if line["kind"] == "bakeoff" and line["split"] == "test"]
