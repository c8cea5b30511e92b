"""The bakeoff's record: a line of settings, a line per cell and setting, and a line per policy of what deciding costs.

On the split "tune" every setting of every grid is measured; on "test" only those on each method's tune front, so that
what is reported was not chosen on the data it is reported on. The record is written after every cell. What it lacks is
measured: after a kill the rest, after a policy or a grid was added its settings.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lynx_moe.calibration import artifact
from lynx_moe.engines.transformers import apply
from lynx_moe.lab.bakeoff.cost import costs
from lynx_moe.lab.bakeoff.fronts import fronts
from lynx_moe.lab.bakeoff.grids import NORMS, ORACLE, Setting, needs_calibration, settings
from lynx_moe.lab.bakeoff.oracle import Oracle
from lynx_moe.lab.bakeoff.together import Loads, together
from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.lab.fidelity import repeats
from lynx_moe.lab.fidelity.lockstep import Effect, decode_together
from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared.documents import MIXES, Batch, Document, batches
from lynx_moe.testbed.tasks import TASKS

Line = dict[str, Any]
SPLITS = ("tune", "test")
ROWS, LOGITS = 4096, 2**27  # of one forward at most; logits are float32


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a result, as in `fidelity.Settings`. num_sequences: of a cell on "test", rounded to whole batches;
    "tune" has half as many. calibration: the file for calibrated policies; None leaves them out."""

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

    def __post_init__(self) -> None:
        self.of(SPLITS[0])
        if self.calibration is not None:
            about = artifact.load(self.calibration).provenance
            if about.data.startswith(f"{self.data}, split all"):
                raise ValueError(f"{self.calibration} was measured on all of {self.data}; calibrate on its own split")
            if self.data != "testbed" and about.data.startswith(f"{self.data}, split calibrate,"):
                raise ValueError(f"{self.calibration} was measured when splits of a file overlapped; calibrate again")

    def of(self, split: str) -> fidelity.Settings:
        """The documents' settings: enough of them for a full batch of every group. Raises ValueError as these do."""
        given = {key: value for key, value in asdict(self).items() if key not in ("norms", "calibration")}
        most = max(self.batch_sizes, default=2)
        given["num_sequences"] = wanted = max(self.num_sequences, most)
        if self.data == "testbed":  # the same number of every task
            each = most if "one" in self.mixes else 1
            given["num_sequences"] = len(TASKS) * max(each, -(-wanted // len(TASKS)))
        return fidelity.Settings(**given, split=split)


def measure(
    given: Settings, path: Path, names: Sequence[str] = (), advance: Callable[[str], None] = lambda message: None
) -> Line:
    """Measures what the record at `path` lacks of the named policies (none named: all), and returns the whole of it.

    Raises ValueError for bad settings, a model without MoE layers or whose cache
    cannot be repeated, data that cannot be read or hold too little, and a
    record of other settings.
    """
    whole = lines.begin(path, "bakeoff", asdict(given))
    cells = [(split, size, mix) for split in SPLITS for size in given.batch_sizes for mix in given.mixes]
    found = {split: fidelity.documents(given.of(split)) for split in SPLITS}
    cuts = {cell: _cut(given, found[cell[0]], *cell) for cell in cells}
    advance("loading the model")
    model, (plain,) = fidelity.open_model(given.of("tune"), ["vanilla"])
    repeats.check(model)
    grid = settings(plain.layers[0].spec, names, given.norms, given.calibration)
    if not names and (reason := unseen(model)):
        advance(f"without the oracle: {reason}")
        grid = [setting for setting in grid if setting.method != ORACLE]
    for number, (split, size, mix) in enumerate(cells, 1):
        done = {line["spec"] for line in of_cell(whole, split, size, mix)}
        wanted = grid if split == "tune" else on_front(whole, grid, size, mix)
        missing = [setting for setting in wanted if setting.spec not in done]
        cut = cuts[split, size, mix]
        what = f"{split}, batch {size}, {'one group' if mix == 'one' else 'mixed'}"
        advance(f"{number} of {len(cells)}: {what}: {len(missing)} settings, {len(cut)} batches")
        whole["results"] += cell(model, plain.shape, cut, missing, {"split": split, "batch_size": size, "mix": mix})
        lines.save(whole, path)
    timed = {line["policy"] for line in whole["results"] if line["kind"] == "cost"}
    if missing := [one for one in grid if one.method not in {ORACLE, *timed} and " " not in one.method]:
        advance("timing the decisions")
        size = min(16, len(found["tune"]))
        whole["results"] += costs(model, batches(found["tune"], size, "mixed", given.seed)[-1], missing)
        lines.save(whole, path)
    return whole


def _cut(given: Settings, found: Sequence[Document], split: str, size: int, mix: str) -> list[Batch]:
    """The batches of one cell. Raises ValueError if there are none."""
    num = given.num_sequences // (1 + (split == "tune")) // size
    if not (cut := few(batches(found, size, mix, given.seed), num)):
        raise ValueError(f"no group of {given.data} has {size} sequences in split {split}; lower --batch-sizes")
    return cut


def cell(model: Any, shape: Any, cut: Sequence[Batch], wanted: Sequence[Setting], about: Line) -> list[Line]:
    """A line per setting on these batches: as many settings at a time as fit into a forward."""
    rows = min(ROWS, LOGITS // model.config.get_text_config().vocab_size)
    size = max(1, rows // len(cut[0].members) - 1)
    found = []
    oracles = [setting for setting in wanted if setting.method == ORACLE]
    others = [setting for setting in wanted if setting.method != ORACLE]
    for part in [group[start : start + size] for group in (others, oracles) for start in range(0, len(group), size)]:
        run, counted = (seer if part[0].method == ORACLE else deciders)(model, part)
        effects: list[list[Effect]] = [decode_together(model, batch, run, len(part) + 1) for batch in cut]
        loads = counted.means()[1:]
        for setting, effect, (before, after) in zip(part, zip(*effects, strict=True), loads, strict=True):
            name = setting.method.partition(" ")[0]
            line = {"kind": "bakeoff", **about, "policy": name, "method": setting.method, "spec": setting.spec}
            line |= {"calibrated": needs_calibration(name), "before": before, "after": after}
            found.append(line | fidelity.summary(cut, effect, ("kl", "agree")))
    return found


def deciders(model: Any, part: Sequence[Setting]) -> tuple[Any, Loads]:
    """What acts in a forward for these settings of policies, and where it counts."""
    policy = together([setting.spec for setting in part])
    return apply(model, policy), policy.loads


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


def of_cell(whole: Line, split: str, batch_size: int, mix: str) -> list[Line]:
    key = (split, batch_size, mix)
    found = [line for line in whole["results"] if line["kind"] == "bakeoff"]
    return [line for line in found if (line["split"], line["batch_size"], line["mix"]) == key]


def on_front(whole: Line, grid: Sequence[Setting], batch_size: int, mix: str) -> list[Setting]:
    """The settings of the grid that are on their method's tune front of a cell."""
    mine = {setting.spec for setting in grid}
    tuned = [line for line in of_cell(whole, "tune", batch_size, mix) if line["spec"] in mine]
    chosen = {setting["spec"] for one in fronts(tuned) for setting in one["settings"]}
    return [setting for setting in grid if setting.spec in chosen]


def few(cut: list[Batch], num: int) -> list[Batch]:
    """`num` batches, at least one, evenly over all: over their lengths, or over their groups."""
    num = min(max(1, num), len(cut))
    return [cut[(2 * place + 1) * len(cut) // (2 * num)] for place in range(num)]


def tested(whole: Line) -> list[Line]:
    """The lines of the split that is reported."""
    return [line for line in whole["results"] if line["kind"] == "bakeoff" and line["split"] == "test"]
