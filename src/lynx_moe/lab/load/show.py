"""A record of `lynx-moe load` as tables and a picture. Nothing is measured here."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lynx_moe.lab.load.findings import SHARE, Objective, goodput, groups, median, ratio, served, throughput
from lynx_moe.lab.shared import tables
from lynx_moe.lab.shared.plots import COLORS, save

HEAD = (
    "requests/s",
    "policy",
    "TTFT, ms: p50, p99",
    "TPOT, ms: p50, p90, p99",
    "ITL, ms: p99",
    "TPOT, baseline's by its own",
    "tokens/s",
    "experts",
    "KL, mnats (rows)",
)
KIND = "load"
CAPTION = "medians of the rounds · [least, most]"
Record = dict[str, Any]


def rows(record: Record, objectives: Sequence[Objective]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and a row per rate and policy; for every objective a column of goodput, in requests per second."""
    baseline, found = record["settings"]["policies"][0], []
    by = groups(record["results"])
    for (server, rate, policy), rounds in by.items():
        base = by.get((server, rate, baseline), [])
        gain = "baseline" if policy == baseline or not base else "{:.2f}x [{:.2f}, {:.2f}]".format(*ratio(rounds, base))
        rate_rows = int(sum(line["kl_rows"] for line in rounds))
        total = sum((line["kl"] or 0.0) * line["kl_rows"] for line in rounds)
        kl = f"{1e3 * total / rate_rows:.2f} ({rate_rows})" if rate_rows else "-"
        experts = [median(rounds, when) for when in ("before", "after")]
        found.append(
            (
                f"{rate:g}",
                policy if not server else f"{policy}, {server}",
                ", ".join(f"{median(rounds, 'ttft_ms', p):.0f}" for p in ("50", "99")),
                ", ".join(f"{median(rounds, 'tpot_ms', p):.1f}" for p in ("50", "90", "99")),
                f"{median(rounds, 'itl_ms', '99'):.1f}",
                gain,
                f"{statistics.median(map(throughput, rounds)):.0f}",
                "-" if math.isnan(experts[0]) else f"{experts[0]:.1f} → {experts[1]:.1f}",
                kl,
                *(f"{goodput(rounds, one):.2f}" for one in objectives),
            )
        )
    return (*HEAD, *(f"goodput at TPOT {one.tpot:g} ms" for one in objectives)), found


SERVED_HEAD = ("objective", "policy", "highest rate served", "tokens/s there", "of the baseline's")


def served_rows(record: Record, objectives: Sequence[Objective]) -> list[tuple[str, ...]]:
    """For each objective and policy the highest measured rate that was served; on the first server's baseline."""
    found: list[tuple[str, ...]] = []
    for objective in objectives:
        lines = served(record["results"], objective)
        base = lines[0]["tokens"]
        for line in lines:
            share = "-" if base is None or line["tokens"] is None else f"{line['tokens'] / base:.2f}x"
            found.append(
                (
                    str(objective),
                    line["policy"] if not line["server"] else f"{line['policy']}, {line['server']}",
                    "none" if line["rate"] is None else f"{line['rate']:g}",
                    "-" if line["tokens"] is None else f"{line['tokens']:.0f}",
                    share,
                )
            )
    return found


def objectives_of(ttft: float, tpots: Sequence[float]) -> list[Objective]:
    """Raises ValueError for a number that no request could meet."""
    for number in (ttft, *tpots):
        if not number > 0:
            raise ValueError(f"an objective of {number:g} ms must be above 0")
    return [Objective(ttft, tpot) for tpot in tpots]


def page(record: Record) -> str:
    """The first table as Markdown, without objectives, of which a record knows none."""
    return f"{tables.markdown(*rows(record, ()))}\n"


def note(record: Record) -> str:
    """What a reader of the tables must know."""
    settings = record["settings"]
    cold = all(line["cold"] for line in record["results"])
    cache = "emptied before every run" if cold else "warm: the server does not let it be emptied"
    return (
        f"{settings['requests']} requests of {settings['trace']}, lengths x {settings['prompt_scale']:g} and "
        f"{settings['answer_scale']:g}, sampled at temperature 1 to the trace's length; prefix cache {cache}. "
        f"A rate is served if {100 * SHARE:.0f} % of its requests meet the objective, there and at every lower rate."
    )


def draw(record: Record, path: Path) -> Path:
    """Median TPOT, and its 99th percentile, by rate; a line per policy."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(12, 4.6))
    by = groups(record["results"])
    series = list(dict.fromkeys((server, policy) for server, _, policy in by))
    for axes, percentile in zip(both, ("50", "99"), strict=True):
        for number, (server, policy) in enumerate(series):
            mine = [(rate, rounds) for (s, rate, p), rounds in by.items() if (s, p) == (server, policy)]
            values = [[line["tpot_ms"][percentile] for line in rounds] for _, rounds in mine]
            middle = [statistics.median(one) for one in values]
            spread = [
                [m - min(v) for m, v in zip(middle, values, strict=True)],
                [max(v) - m for m, v in zip(middle, values, strict=True)],
            ]
            name = policy if not server else f"{policy}, {server}"
            rates, color = [rate for rate, _ in mine], COLORS[number % len(COLORS)]
            axes.errorbar(rates, middle, yerr=spread, marker="o", capsize=3, label=name, color=color)
        axes.set_xlabel("requests per second")
        axes.set_ylabel(f"time per output token, ms, p{percentile}")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(
        f"{Path(record['settings']['model']).name} on {Path(record['settings']['trace']).name}", fontsize=10
    )
    save(figure, record["environment"], path)
    plt.close(figure)
    return path
