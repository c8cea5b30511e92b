"""The end of the page: what the model tolerates, and the policy that this suggests."""

from typing import Any

from lynx_moe.lab.profile.check import kept_enough, suggested
from lynx_moe.lab.profile.measure import part
from lynx_moe.lab.profile.show.findings import protected
from lynx_moe.lab.profile.show.words import mnats, more, percent

Line = dict[str, Any]


def verdict(whole: Line) -> list[str]:
    """Sentences, the suggestion last."""
    (routing,) = part(whole, "routing")
    tolerance = whole["settings"]["tolerance"]
    enough = kept_enough(part(whole, "ranks"), tolerance)
    if enough < routing["top_k"]:
        loads = routing["loads_by_rank"]
        ranks = (
            f"Each token needs its first {enough} of {routing['top_k']} experts; the rest hardly matter. A batch "
            f"of {whole['settings']['batch_size']} loads {loads[-1]:.1f} experts per layer, {loads[enough - 1]:.1f} of "
            "them for those."
        )
    else:
        ranks = f"Each token needs all of its {routing['top_k']} ranks: leaving one out costs more than the tolerance."
    return [ranks, _phases(whole), _experts(whole), _suggestion(whole)]


def _phases(whole: Line) -> str:
    """By the costliest reassignment that leaves every rank's expert a chance: the random half."""
    lines = {line["phase"]: line for line in part(whole, "phases") if line["denied"] == "random half"}
    word = {
        True: "Prefill is the sensitive phase, as published: prompts should keep their routing, as they do here.",
        False: "Against what was published, decode is the more sensitive phase here: look twice at a policy's cost.",
        None: "Neither phase is clearly the more sensitive one.",
    }[more(lines["prefill"], lines["decode"])]
    return (
        f"{word} A random half denied costs {mnats(lines['prefill'])} in prefill, {mnats(lines['decode'])} in decode."
    )


def _experts(whole: Line) -> str:
    found, tried = protected(whole), part(whole, "experts")
    if not found:
        return f"None of the {len(tried)} experts that were tried is indispensable by itself."
    layers = sorted({line["layer"] for line in found})
    return (
        f"{len(found)} of the {len(tried)} experts that were tried are worth protecting, in layer"
        f"{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}: a policy that goes by the tokens' favourites (oea, "
        "lynx:pin_top1=true) keeps them whenever a token wants them first."
    )


def _suggestion(whole: Line) -> str:
    settings = whole["settings"]
    limit = f"{1000 * settings['tolerance']:g} millinats a token"
    best = suggested(part(whole, "check"), settings["tolerance"])
    if best is None:
        return f"None of the policies tried stays within {limit} and loads fewer experts: serve this model as it is."
    return (
        f"Suggested: {best['policy']}. In batches of {settings['batch_size']} it loads {best['after']:.1f} instead of "
        f"{best['before']:.1f} experts per layer and step, costs {mnats(best)} and writes the same token in "
        f"{percent(best, 'agree')} % of cases; of those tried, the fewest experts within {limit}."
    )


def command(whole: Line) -> str | None:
    """How the suggestion is served; None where there is none."""
    best = suggested(part(whole, "check"), whole["settings"]["tolerance"])
    return f"lynx-moe serve MODEL --policy {best['policy']}" if best else None
