"""The record of `lynx-moe speculation`: a line of settings, then one per drafter, way of verifying, policy and batch.

Each drafter and way of verifying has an engine of its own, in its own process, which writes the record after every
line: an interrupted run goes on behind its last one.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lynx_moe.engines.shared import config
from lynx_moe.engines.shared.options import DRAFT, EXACT
from lynx_moe.engines.vllm.launch.options import VERIFY
from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared.engine import import_vllm, in_own_process, prepare
from lynx_moe.lab.shared.models import named
from lynx_moe.lab.speculation.serve import serve
from lynx_moe.lab.speculation.show import KIND
from lynx_moe.policies import DEFAULT, make_policy

NONE, MTP = "none", "mtp"
TABLES = {"ngram": {"prompt_lookup_max": 3, "prompt_lookup_min": 1}, "suffix": {}}  # drafters without a model
Line = dict[str, Any]


class Engine(NamedTuple):
    """drafter: as it was named; verify: how the engine was started; cells: (policy, batch size) that it measures."""

    drafter: str
    verify: str
    cells: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a result.

    model           folder of a trained testbed model, or its name.
    drafters        "none", "ngram", "suffix", "mtp" (the model's own layer), or a model that drafts: a folder, or a
                    testbed model's name.
    verify          "exact", "remap", "draft"; each is measured where the drafter allows it.
    policies        the first must change nothing: all others are compared with it, without drafts.
    batch_sizes     requests that start together.
    num_drafts      tokens that are drafted for a request in every step, at most.
    items_per_task  held-out exercises of every task.
    shadow          share of the steps in which the KL is measured; 0: it is not.
    """

    model: str
    drafters: tuple[str, ...] = (NONE, "ngram", "draft")
    verify: tuple[str, ...] = VERIFY
    policies: tuple[str, ...] = ("vanilla", DEFAULT)
    batch_sizes: tuple[int, ...] = (1, 4, 16)
    num_drafts: int = 3
    items_per_task: int = 40
    shadow: float = 0.25

    def __post_init__(self) -> None:
        if unknown := [way for way in self.verify if way not in VERIFY]:
            raise ValueError(f"--verify {unknown[0]!r} is unknown; allowed: {', '.join(VERIFY)}")
        if not self.drafters or not self.verify or len(set(self.drafters)) < len(self.drafters):
            raise ValueError("--drafters and --verify must each name something, and nothing twice")
        if min(self.batch_sizes, default=0) < 1:
            raise ValueError(f"--batch-sizes {self.batch_sizes}: name some, each 1 or more")
        if min(self.num_drafts, self.items_per_task) < 1:
            raise ValueError(f"--drafts {self.num_drafts} and --items-per-task {self.items_per_task} must be 1 or more")
        if not 0 <= self.shadow <= 1:
            raise ValueError(f"--shadow {self.shadow}: a share of the steps from 0 to 1")
        specs = lines.specs_of(self.policies)
        if not make_policy(specs[0]).is_identity:
            raise ValueError(f"--policies begins with {specs[0]!r}; the first is the baseline and must be vanilla")
        if (folder := config.folder_of(self.model)) is not None:
            for policy in specs:
                config.check(config.read(folder), make_policy(policy), self.model)
            if MTP in self.drafters and not config.read(folder).get("num_nextn_predict_layers"):
                raise ValueError(f"--drafters {MTP}: {self.model} has no MTP layer; train one: lynx-moe testbed mtp")
        self.engines()

    def engines(self) -> list[Engine]:
        """One for every drafter and way of verifying that it allows. Raises ValueError for a drafter that is not
        there."""
        first, *others = lines.specs_of(self.policies)
        found = []
        for drafter in self.drafters:
            for verify in self.verify if drafter != NONE else (EXACT,):
                if verify == DRAFT and (drafter in TABLES or not has_experts(drafter)):
                    continue
                policies = [first, *others] if verify == EXACT else others  # what changes nothing is verified exactly
                cells = tuple((policy, size) for size in self.batch_sizes for policy in policies)
                found.append(Engine(drafter, verify, cells))
        return found


def has_experts(drafter: str) -> bool:
    """Whether a model that drafts may have MoE layers, by its folder; MTP layers of MoE models have."""
    return drafter == MTP or not config.is_dense(config.read(Path(named(drafter))))


def measure(settings: Settings, path: Path, advance: Callable[[str], None] = print) -> lines.Record:
    """The record at `path`, finished: what it has already is not measured again.

    Raises ValueError for no vLLM, an engine that refuses the model or the drafter, and a record of other settings.
    """
    prepare(threads=1)  # a tiny model
    import_vllm()
    whole = lines.begin(path, KIND, asdict(settings))
    for number, engine in enumerate(engines := settings.engines(), 1):
        done = {(line["policy"], line["batch"]) for line in of_engine(whole, engine)}
        missing = tuple(cell for cell in engine.cells if cell not in done)
        if missing:
            advance(f"{number} of {len(engines)}: drafts by {engine.drafter}, verify {engine.verify}")
            lines.save(whole, path)
            in_own_process(_run, settings, path, engine._replace(cells=missing))
            whole = lines.load(path, KIND)
    return whole


def of_engine(whole: lines.Record, engine: Engine) -> list[Line]:
    """The lines that this engine has measured."""
    key = (engine.drafter, engine.verify)
    return [line for line in whole["results"] if (line["drafter"], line["verify"]) == key]


def speculation_of(drafter: str, num: int) -> dict[str, Any] | None:
    """vLLM's `speculative_config`."""
    if drafter == NONE:
        return None
    given: dict[str, Any] = {"num_speculative_tokens": num}
    if drafter == MTP or drafter in TABLES:
        return {"method": drafter, **given, **TABLES.get(drafter, {})}
    return {"method": "draft_model", **given, "model": named(drafter)}


def _run(settings: Settings, path: Path, engine: Engine) -> None:
    """In the engine's process: measures its cells, and saves the record after each."""
    whole = lines.load(path, KIND)
    drafting = {"speculative_config": speculation_of(engine.drafter, settings.num_drafts), "verify": engine.verify}
    found = serve(
        settings.model,
        {"shadow": settings.shadow, **(drafting if engine.drafter != NONE else {})},
        engine.cells,
        settings.items_per_task,
        settings.num_drafts,
    )
    for line in found:
        whole["results"].append({"kind": KIND, "drafter": engine.drafter, "verify": engine.verify, **line})
        lines.save(whole, path)
