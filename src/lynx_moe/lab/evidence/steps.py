"""The commands behind the quality tables of README and docs/results, a step for what belongs together."""

from typing import NamedTuple

FAMILIES = ("qwen3-moe", "olmoe", "mixtral", "gpt-oss", "deepseek-v3")
APART = "-unbalanced"
HELD_OUT = "--data {carved}/held_out.jsonl --dtype float32"
ON_CARVED = (
    "priced:price=0.003 priced:price=0.01 priced priced:price=0.1 priced:ends=true,slope=1 "
    "priced:price=0.1,ends=true,slope=1 priced:price=0.2,ends=true,slope=1 priced:ends=true,slope=1,reroute=1 "
    "priced:price=0.1,ends=true,slope=1,reroute=1 priced:price=0.2,ends=true,slope=1,reroute=1 lynx oea:k0=2 "
    "oea:k0=3 oea:k0=4 xshare:budget=20,k0=1 alloc:k=4 topk:k=4"
)
MEASURED = "sensitive=true,data={out}/text/calibration.safetensors"
OF_TEXT = "--data models/text/held_out.jsonl --dtype float32"
ON_TEXT = (
    "priced:price=0.003 priced:price=0.01 priced priced:price=0.1 "
    + "".join(
        f"priced:price={price},{knobs} "
        for knobs in ("ends=true,slope=1", "ends=true,slope=1,reroute=1", MEASURED)
        for price in (0.003, 0.01, 0.03, 0.1)
    )
    + "lynx oea:k0=2 oea:k0=3 oea:k0=4 xshare:budget=24,k0=1 naee:beta=0.4 topk:k=4 alloc:k=4"
)
OF_A_CACHE = (
    "priced:price=0.01 priced priced:price=0.1 oea:k0=4 drop-on-miss:mass=0.05 drop-on-miss:mass=0.1 "
    "drop-on-miss:mass=0.2"
)
OF_PRICES = "priced:price=0.01 priced priced:price=0.06 priced:price=0.1"
RULES_OF_A_CACHE = "drop-on-miss:mass=0.1 drop-on-miss:mass=0.2 cache-prior:weight=0.1 cache-prior:weight=0.3"
ON_RANKS = (
    "priced:price=0.01 priced priced:price=0.1 priced:price=0.3 priced:price=0.01,per_rank=true priced:per_rank=true "
    "priced:price=0.1,per_rank=true priced:price=0.3,per_rank=true lynx lynx:per_rank=true"
)
TIERS = {"tiers-exact": "0.01 0.03 0.1 exact", "tiers": "0.01 0.03 0.1"}
DRAFTERS = {"qwen3-moe": "none ngram draft olmoe", "mixtral": "none ngram draft", "deepseek-v3": "none mtp draft"}
ACCEPTED = {"qwen3-moe": "0.976,0.919,0.841", "mixtral": "0.977,0.914,0.844"}  # of the dense drafter's, by depth
SENSITIVE = "sensitive.safetensors"
QUANTISED = {"qwen3-moe": ("w8a8", "int4", "awq", "fp8"), "gpt-oss": ("mxfp4",)}


class Step(NamedTuple):
    """Commands that end in the table of one page. minutes: of two cores, about; needs: what must be there, or else it
    is left out."""

    name: str
    page: str
    minutes: float
    commands: tuple[str, ...]
    needs: str = ""


def steps() -> list[Step]:
    """All of them. Names in braces are places (`evidence` has them); `> FILE` keeps what a command prints."""
    found = [Step("demo", "demo.md", 3, ("lynx-moe demo --out {out}/demo",))]
    for name in FAMILIES:
        found += of_family(name)
    for name, drafters in DRAFTERS.items():
        here = f"{{out}}/{name}/speculation"
        found.append(Step(f"speculation on {name}", "speculation.md", 20, (
            f"lynx-moe speculation {name} --drafters '{drafters}' --items-per-task 20 --out {here}",
            f"lynx-moe table {here}/speculation.jsonl > {here}.md",
        )))  # fmt: skip
    for name, rates in ACCEPTED.items():
        here = f"{{out}}/{name}/verifying"
        found.append(Step(f"verifying drafts on {name}", "speculation.md", 10, (
            f"lynx-moe bakeoff {name} --mixes draft --drafts {rates} --batch-sizes 1,4,16 --norms model "
            "--dtype float32 --sequences 56 --policies 'priced moe-spec acceptmoe lynx oea' "
            f"--out {here}",
            f"lynx-moe table {here}/bakeoff.jsonl > {here}.md",
        )))  # fmt: skip
    for name in ("qwen3-moe", "gpt-oss"):
        here = f"{{out}}/{name}"
        commands = (
            f"lynx-moe fidelity {name} --tiers '{tiers}' --batch-sizes 16 --mixes mixed --split test "
            f"--sequences 448 --out {here}/{folder}"
            for folder, tiers in TIERS.items()
        )
        found.append(Step(f"prices side by side on {name}", "tiers.md", 30, tuple(commands)))
    for name, more in (("qwen3-moe", ""), ("mixtral", "lynx:beta=1 ")):
        found += [
            Step(f"fidelity of {name}", "fidelity.md", 1, (
                f"lynx-moe fidelity {name} --policies 'lynx {more}lynx-v1 oea:k0=1' --batch-sizes 4,16 --mixes mixed "
                f"--sequences 112 --out {{out}}/{name}/fidelity",
                f"lynx-moe table {{out}}/{name}/fidelity/fidelity.jsonl > {{out}}/{name}/fidelity.md",
            )),
            Step(f"profile of {name}", "profile.md", 2, (f"lynx-moe profile {name} --out {{out}}/{name}/profile",)),
        ]  # fmt: skip
    found += [
        Step("guard", "guard.md", 2, (
            "lynx-moe eval qwen3-moe --limit 20 --policies 'vanilla random:num_keep=16 lynx priced' "
            "--guard '{{\"max_mass_lost\": 0.1}}' --out {out}/guard",
            "lynx-moe table {out}/guard/eval.jsonl > {out}/guard.md",
        )),
        Step("ranks", "ranks.md", 1, (
            "lynx-moe record qwen3-moe --engine transformers --sequences 64 --out {out}/routing.safetensors",
            "lynx-moe replay {out}/routing.safetensors --ranks 8 --policies 'vanilla priced priced:per_rank=true "
            "oea:k0=3 oea:k0=3,per_rank=true' > {out}/ranks.txt",
        )),
        *(
            Step(f"{name} on ranks", "ranks.md", 8, (
                f"lynx-moe fidelity {name} --ranks 2,4,8 --policies '{ON_RANKS}' --batch-sizes 16 --mixes mixed "
                f"--sequences 112 --dtype float32 --out {{out}}/ranks/{name}",
                *(
                    f"lynx-moe table {{out}}/ranks/{name}/{number}-ranks.jsonl --at-equal-experts "
                    f"> {{out}}/ranks/{name}/{number}-ranks.md"
                    for number in (2, 4, 8)
                ),
            ))
            for name in ("qwen3-moe", "deepseek-v3")
        ),
        Step("the carved model", "carved.md", 10, ("lynx-moe testbed carve",)),
        Step("fidelity of the carved model", "carved.md", 90, (
            f"lynx-moe fidelity carved {HELD_OUT} --policies '{ON_CARVED}' --batch-sizes 1,4,16,64 --mixes mixed "
            "--split test --sequences 64 --steps 16 --out {out}/carved",
            "lynx-moe table {out}/carved/fidelity.jsonl > {out}/carved/fidelity.md",
            "lynx-moe table {out}/carved/fidelity.jsonl --at-equal-experts > {out}/carved/equal.md",
            "python tests/helpers/kl_by_layer.py carved {carved}/held_out.jsonl > {out}/carved/by-layer.md",
        ), "tests/helpers/kl_by_layer.py"),
        Step("bakeoff of the carved model", "carved.md", 40, (
            f"lynx-moe calibrate carved {HELD_OUT} --sequences 32 --prefix 32 --steps 32 --sensitivity 32 "
            "-o {out}/carved/calibration.safetensors",
            f"lynx-moe bakeoff carved {HELD_OUT} --batch-sizes 16 --mixes mixed --norms model --sequences 32 "
            "--prefix 32 --steps 8 --max-memory 3 --policies 'priced priced:ends=true,slope=1 "
            "priced:sensitive=true,data={out}/carved/calibration.safetensors lynx oea xshare oracle' "
            "--out {out}/carved/bakeoff",
            "lynx-moe table {out}/carved/bakeoff/bakeoff.jsonl > {out}/carved/bakeoff.md",
        )),
        Step("fidelity of text", "text.md", 12, (
            f"lynx-moe calibrate text {OF_TEXT} --sequences 64 --prefix 32 --steps 64 --sensitivity 64 "
            "-o {out}/text/calibration.safetensors",
            f"lynx-moe fidelity text {OF_TEXT} --policies '{ON_TEXT}' --batch-sizes 4,16 --mixes mixed --split test "
            "--sequences 96 --steps 16 --out {out}/text",
            "lynx-moe table {out}/text/fidelity.jsonl > {out}/text/fidelity.md",
            "lynx-moe table {out}/text/fidelity.jsonl --at-equal-experts > {out}/text/equal.md",
            "python tests/helpers/kl_by_layer.py text models/text/held_out.jsonl > {out}/text/by-layer.md",
            f"lynx-moe record text {OF_TEXT} --engine transformers --batch-size 8 --sequences 32 "
            "--out {out}/text/recording.safetensors",
            f"lynx-moe replay {{out}}/text/recording.safetensors --slots 16 --policies '{OF_A_CACHE} "
            "cache-prior:weight=0.1 cache-prior:weight=0.3' > {out}/text/cache.txt",
            "lynx-moe replay {out}/text/recording.safetensors --slots 16 --aware --policies 'priced:price=0.01 priced "
            "priced:price=0.06 priced:price=0.1 priced:price=0.2' > {out}/text/cache-aware.txt",
            *(f"lynx-moe fidelity text --engine vllm {OF_TEXT} --batch-sizes 8 --mixes mixed --split test --sequences "
              f"64 --steps 16 --model-args experts_resident=16,experts_residency={known} "
              f"--policies '{OF_PRICES} {rivals}' --out {{out}}/text/{known}"
              for known, rivals in (("blind", "oea:k0=4"), ("aware", RULES_OF_A_CACHE))),
        ), "models/text/model.safetensors"),
        Step("bakeoff of text", "text.md", 45, tuple(
            command
            for name, sizes, sequences in ((1, "1", 24), (16, "4,16", 64), (64, "64", 128))
            for command in (
                f"lynx-moe bakeoff text {OF_TEXT} --batch-sizes {sizes} --mixes mixed --norms model --sequences "
                f"{sequences} --prefix 32 --steps 16 --policies 'priced priced:{MEASURED} lynx oea xshare alloc topk "
                f"naee min-p oracle' --out {{out}}/text/bakeoff-{name}",
                f"lynx-moe table {{out}}/text/bakeoff-{name}/bakeoff.jsonl > {{out}}/text/bakeoff-{name}.md",
            )
        ), "models/text/model.safetensors"),
        Step("what max_kl keeps", "max-kl.md", 210, (
            "python tests/timing/measure_max_kl.py",
            "python tests/timing/measure_max_kl.py carved 4 16",
            "python tests/timing/back_off_kl.py",
            *(f"python tests/timing/follow_max_kl.py qwen3-moe priced 16{way}" for way in ("", " back")),
            "python tests/timing/follow_max_kl.py qwen3-moe random:num_keep=16 16",
        )),
        Step("routes", "routes.md", 5, (
            "lynx-moe replay {routes} --mixes one,mixed --policies 'vanilla priced:price=0.01 priced priced:price=0.1 "
            "oea:k0=4 topk:k=4 naee:beta=0.5 min-p:k_min=2,threshold=0.5' > {out}/routes.txt",
            *(f"lynx-moe replay {{routes}} --mixes one,mixed --steps 32 --slots {slots} --batch-sizes {size} "
              f"--policies '{OF_A_CACHE}' > {{out}}/routes-{size}-{slots}.txt" for size, slots in ((8, 16), (16, 32))),
        ), "{routes}"),
    ]  # fmt: skip
    for name, schemes in QUANTISED.items():
        for scheme in schemes:
            made, script = f"{{out}}/models/{name}-{scheme}", "tests/helpers/quantized.py"
            found.append(Step(f"{name} as {scheme}", "quantised.md", 2, (
                f"python {script} models/{name} {made} {scheme}",
                f"lynx-moe eval {made} --limit 40 --policies 'vanilla priced lynx' --out {{out}}/{name}/{scheme}",
                f"lynx-moe table {{out}}/{name}/{scheme}/eval.jsonl > {{out}}/{name}/{scheme}.md",
            ), script))  # fmt: skip
    return [*found, pairs()]


def of_family(name: str) -> list[Step]:
    here = f"{{out}}/{name}"
    return [
        Step(f"bakeoff of {name}", "bakeoff.md", 60, (
            f"lynx-moe calibrate {name} -o {here}/calibration.safetensors",
            f"lynx-moe bakeoff {name} --calibration {here}/calibration.safetensors --norms model --dtype float32 "
            f"--out {here}/bakeoff",
            f"lynx-moe table {here}/bakeoff/bakeoff.jsonl > {here}/bakeoff.md",
        )),
        Step(f"exact match of {name}", "bakeoff.md", 2, (
            f"lynx-moe eval {name} --limit 100 --policies 'vanilla priced priced:price=0.1' --out {here}/exact",
            f"lynx-moe table {here}/exact/eval.jsonl > {here}/exact.md",
        )),
        Step(f"scores of {name}", "testbed-scores.md", 4, (
            f"lynx-moe eval {name} --policies 'vanilla lynx lynx-v1' --control --out {here}/scores",
            f"lynx-moe table {here}/scores/eval.jsonl > {here}/scores.md",
        )),
        Step(f"a row alone on {name}", "priced.md", 1, (
            f"lynx-moe fidelity {name} --policies priced --batch-sizes 1,4 --mixes mixed --split test "
            f"--sequences 64 --out {here}/alone",
            f"lynx-moe table {here}/alone/fidelity.jsonl > {here}/alone.md",
        )),
        Step(f"sensitivities of {name}", "priced.md", 3, (
            f"lynx-moe calibrate {name} --sequences 112 --sensitivity 112 --dtype float32 -o {here}/{SENSITIVE}",
            f"lynx-moe fidelity {name} --dtype float32 --batch-sizes 16 --mixes mixed --split test --sequences 448 "
            f"--policies '{prices(f'sensitive=true,data={here}/{SENSITIVE}')}' --out {here}/sensitive",
            f"lynx-moe table {here}/sensitive/fidelity.jsonl --at-equal-experts > {here}/sensitive.md",
        )),
    ]  # fmt: skip


def prices(knobs: str) -> str:
    """`priced` without and with these knobs, at four prices."""
    return " ".join(f"priced:price={price}{more}" for more in ("", f",{knobs}") for price in (0.01, 0.03, 0.1, 0.3))


def pairs() -> Step:
    """Models with and without load balancing; the latter are not shipped."""
    folders = [f"{place}/{name}" for name in FAMILIES for place, name in (("models", name), ("{twins}", name + APART))]
    each = (
        f"lynx-moe {command} --out {{out}}/pairs/{folder.rpartition('/')[2]}"
        for folder in folders
        for command in (
            f"fidelity {folder} --policies 'lynx priced' --batch-sizes 16 --sequences 112 --dtype float32",
            f"eval {folder} --limit 100 --policies 'vanilla lynx'",
        )
    )
    table = "lynx-moe table {out}/pairs > {out}/pairs.md"
    needs = f"{{twins}}/{FAMILIES[0]}{APART}/model.safetensors"
    return Step("twins without load balancing", "load-balancing.md", 30, (*each, table), needs)
