"""Policies that ask prices against all others, at the number of experts that the other keeps: from a saved record.
Where experts were on ranks, that of the fullest one.

Between two prices KL is interpolated geometrically and log-likelihood in a line, both over distinct experts. Sequences
are drawn anew together, so the ratio and the difference are paired.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lynx_moe.lab.fidelity.measure import Line
from lynx_moe.lab.shared.tables import markdown
from lynx_moe.policies import DEFAULT, make_policy

HEAD = ("batch", "rival", "experts", "ours", "KL, ours / rival's", "log-likelihood, ours - rival's, mnats")
DRAWS = 2000


def compared(results: Sequence[Line], seed: int = 0) -> list[Line]:
    """A line per cell, rival and policy with prices: `ratio` of KL and `gain` in nats, each with its interval.

    The default policy as it comes is a rival of its other forms. Left out is a rival whose experts lie between no two
    prices that were measured, and one that changes nothing.
    """
    found = []
    for cell in dict.fromkeys((line["batch_size"], line["mix"], line["cache"]) for line in results):
        lines = [line for line in results if (line["batch_size"], line["mix"], line["cache"]) == cell]
        forms = [_form(line["policy"]) for line in lines]
        of = "fullest_" if "fullest_after" in lines[0] else ""
        for rival, rivals_form in zip(lines, forms, strict=True):
            if rivals_form not in (None, DEFAULT) or not rival["kl"]:
                continue
            for name in dict.fromkeys(forms):
                if name in (None, rivals_form):
                    continue
                settings = [line for line, form in zip(lines, forms, strict=True) if form == name]
                if pair := _around(settings, rival, f"{of}after"):
                    known = {"batch": cell[0], "rival": rival["policy"], "ours": name, "before": rival[f"{of}before"]}
                    found.append(known | {"after": rival[f"{of}after"]} | _against(*pair, rival, f"{of}after", seed))
    return found


def _form(spec: str) -> str | None:
    """The policy without its price; None where it knows none."""
    policy: Any = make_policy(spec)
    return str(policy.without_price().spec) if policy.knows_prices else None


def _around(settings: Sequence[Line], rival: Line, after: str) -> tuple[Line, Line] | None:
    """The two nearest settings, of fewer experts and of more; after: the experts that count."""
    fewer = [line for line in settings if line[after] <= rival[after] and line["kl"]]
    more = [line for line in settings if line[after] >= rival[after] and line["kl"]]
    if not fewer or not more:
        return None
    return max(fewer, key=lambda line: line[after]), min(more, key=lambda line: line[after])


def _against(fewer: Line, more: Line, rival: Line, after: str, seed: int) -> Line:
    width = more[after] - fewer[after]
    part = (rival[after] - fewer[after]) / width if width else 0.0
    steps = np.array(rival["steps_by_sequence"], dtype=float)
    drawn = np.random.default_rng(seed).integers(len(steps), size=(DRAWS, len(steps)))
    drawn = np.concatenate([np.arange(len(steps))[None], drawn])  # first, all of them as they are

    def means(line: Line, name: str) -> np.ndarray:
        values = np.array(line[f"{name}_by_sequence"]) * steps
        result: np.ndarray = values[drawn].sum(1) / steps[drawn].sum(1)
        return result

    log_kl = (1 - part) * np.log(means(fewer, "kl")) + part * np.log(means(more, "kl"))
    ratio = np.exp(log_kl - np.log(means(rival, "kl")))
    gain = (1 - part) * means(fewer, "gain") + part * means(more, "gain") - means(rival, "gain")
    found: Line = {}
    for name, values in (("ratio", ratio), ("gain", gain)):
        found |= {name: float(values[0]), f"{name}_interval": np.percentile(values[1:], [2.5, 97.5]).tolist()}
    return found


def page(results: Sequence[Line]) -> str:
    """The table as Markdown. Raises ValueError where nothing can be compared."""
    lines = compared(results)
    if not lines:
        raise ValueError("no policy with prices has settings on both sides of a rival's experts; measure more prices")
    return f"{markdown(HEAD, [_row(line) for line in lines])}\n"


def _row(line: Line) -> tuple[str, ...]:
    low, high = line["ratio_interval"]
    gain, least, most = (1000 * value for value in (line["gain"], *line["gain_interval"]))
    return (
        str(line["batch"]),
        f"`{line['rival']}`",
        f"{line['after']:.1f} of {line['before']:.1f}",
        f"`{line['ours']}`",
        f"{line['ratio']:.2f} [{low:.2f}, {high:.2f}]",
        f"{gain:+.0f} [{least:+.0f}, {most:+.0f}]",
    )
