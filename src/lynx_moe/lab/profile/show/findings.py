"""What each observation came out as, in a sentence; a difference is called clear if its 95 % interval excludes zero."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lynx_moe.lab.profile.check import kept_enough
from lynx_moe.lab.profile.measure import part
from lynx_moe.lab.profile.show.words import mnats, more, number, times

Line = dict[str, Any]


def time(whole: Line) -> str:
    said = []
    for line in part(whole, "time"):
        fit, ends = line["fit"], [line["points"][place]["experts"] for place in (0, -1)]
        few, many = (fit["base"] + fit["slope"] * number for number in ends)
        r2 = "" if fit["r2"] is None else f" (R² = {fit['r2']:.3f})"
        said.append(
            f"A {line['phase']} forward of {line['rows']:,} rows takes {fit['base']:.1f} ms and {fit['slope']:.3f} ms "
            f"more per distinct expert{r2}: with {ends[1]} experts {many / few:.2f} times as long as with {ends[0]}."
        )
    size, cache = line["experts_bytes"], line["cache_bytes"]
    if size and cache:
        fits = size < cache
        what = (
            "this model is small: they are not fetched from memory, so the times are mostly the cost of calling more "
            "experts, and a model that does not fit behaves otherwise"
            if fits
            else "so they are fetched from memory at every step"
        )
        said.append(
            f"All experts together are {size / 2**20:,.1f} MiB, {'less' if fits else 'more'} than this machine's cache "
            f"of {cache / 2**20:,.0f} MiB: {what}."
        )
    return " ".join(said)


def use(whole: Line) -> str:
    (line,) = part(whole, "routing")
    return (
        f"Over the data set an expert's share of tokens lies {100 * line['over_data']:.1f} points from the even "
        f"{100 * line['even']:.1f} % (root mean square), inside a batch {100 * line['inside']:.1f}; routing at random "
        f"would give {100 * line['over_data_uniform']:.1f} and {100 * line['inside_uniform']:.1f}."
    )


def phases(whole: Line) -> str:
    said = []
    by_name = {(line["phase"], line["denied"]): line for line in part(whole, "phases")}
    for name in dict.fromkeys(line["denied"] for line in part(whole, "phases")):
        prefill, decode = by_name["prefill", name], by_name["decode", name]
        verdict = {True: "more than", False: "less than", None: "not clearly more or less than"}[more(prefill, decode)]
        said.append(f"{name} denied in prefill costs {mnats(prefill)}, {verdict} in decode, {mnats(decode)}")
    return f"{'; '.join(said)}.".capitalize()


def confidence(whole: Line) -> str:
    said = []
    lines = part(whole, "confidence")
    for name in dict.fromkeys(line["denied"] for line in lines):
        mine = [line for line in lines if line["denied"] == name]
        low, high = mine[0], mine[-1]
        apart = high["kl_interval"][0] > low["kl_interval"][1] or low["kl_interval"][0] > high["kl_interval"][1]
        word = ("more" if high["kl"] > low["kl"] else "less") if apart else "not clearly more or less"
        said.append(
            f"with the {name} denied, the surest quarter of tokens loses {word} than the least sure: {mnats(high)} "
            f"against {mnats(low)}"
        )
    return f"{'; '.join(said)}.".capitalize()


def ranks(whole: Line) -> str:
    lines = part(whole, "ranks")
    first, last = lines[0], [line for line in lines if line["what"] == "deny"][-1]
    tolerance = whole["settings"]["tolerance"]
    enough, top_k = kept_enough(lines, tolerance), part(whole, "routing")[0]["top_k"]
    clear = "not clearly apart" if more(first, last) is None else "clearly apart"
    kept = f"the first {enough} of {top_k} are enough" if enough < top_k else f"all {top_k} are needed"
    return (
        f"Denying the favourite costs {mnats(first)}, denying rank {last['rank']} {mnats(last)}: {times(first, last)}, "
        f"{clear}. To stay within {1000 * tolerance:g} millinats {kept}."
    )


def layers(whole: Line) -> str:
    lines = sorted(part(whole, "layers"), key=lambda line: line["kl"])
    least, most = lines[0], lines[-1]
    if len(lines) == 1:
        return f"The only MoE layer costs {mnats(most)}."
    clear = "clearly" if more(most, least) else "not clearly"
    return (
        f"Layer {most['layer']} is the most sensitive ({mnats(most)}), layer {least['layer']} the least "
        f"({mnats(least)}): {times(most, least)}, {clear} apart."
    )


def distinct(whole: Line) -> str:
    (line,) = part(whole, "routing")
    point = min(line["distinct"], key=lambda point: abs(point["batch_size"] - whole["settings"]["batch_size"]))
    return (
        f"{point['batch_size']} tokens together load {point['mean']:.1f} of {line['num_experts']} experts per layer; "
        f"uniform routing would load {point['uniform']:.1f}."
    )


def protected(whole: Line) -> list[Line]:
    """Experts whose denial costs more than the tolerance, by the lower end of the interval; the costliest first."""
    tolerance = whole["settings"]["tolerance"]
    found = [line for line in part(whole, "experts") if line["kl_interval"][0] > tolerance]
    return sorted(found, key=lambda line: -line["kl"])


def experts(whole: Line) -> str:
    lines = sorted(part(whole, "experts"), key=lambda line: -line["kl"])
    worst, median = lines[0], float(np.median([line["kl"] for line in lines]))
    found = protected(whole)
    names = f": {named(found)} (layer.expert)" if found else ""
    return (
        f"The costliest to lose is expert {worst['expert']} of layer {worst['layer']}, {mnats(worst)}; the median of "
        f"the {len(lines)} tried costs {number(1000 * median)}. "
        f"{len(found)} cost more than the tolerance for sure{names}."
    )


def named(lines: Sequence[Line], most: int = 12) -> str:
    names = [f"{line['layer']}.{line['expert']}" for line in lines[:most]]
    return ", ".join(names) + (f" and {len(lines) - most} more" if len(lines) > most else "")
