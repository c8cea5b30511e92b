"""One frame of `lynx-moe top`: what a scrape says, as a rich renderable."""

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lynx_moe.control.sampling import in_order
from lynx_moe.engines.shared.families import SHADOW
from lynx_moe.lab.watch.scrape import PREFIX, Scrape

WIDTH = 32  # characters of the longest bar
STEPS = ("decode", "mixed", "prefill", "single")


def frame(now: Scrape, earlier: Scrape | None, url: str) -> RenderableType:
    """`now` against an earlier scrape: distinct experts and rates in between; without one, all since the start. A panel
    for each engine; pipeline stages are put together as the families' own words say (`engines/shared/families.py`)."""
    before = {} if earlier is None else earlier.engines()
    return Group(*(_engine(mine, before.get(engine), url) for engine, mine in now.engines().items()))


def _engine(now: Scrape, earlier: Scrape | None, url: str) -> RenderableType:
    new = now.since(earlier)
    seconds = None if earlier is None else now.moment - earlier.moment
    rates = Text("\n").join([*_rates(new, seconds), *_paced(now), *_tuned(new, now)])
    parts = [_head(now, url), _layers(new, now, seconds), rates, _kl(now), _guard(now)]
    return Panel(Group(*parts), title="lynx-moe top", title_align="left", box=box.ROUNDED)


def _head(now: Scrape, url: str) -> Text:
    policy, asked = (now.label("policy_info", label) for label in ("policy", "asked"))
    text = Text.assemble((now.label("policy_info", "model_name"), "bold"), f" at {url}\npolicy ", (policy, "bold cyan"))
    if policy != asked:
        text.append(f" instead of {asked}: the guard has backed off", "yellow")
    own = int(now.total("layers", routing="own"))
    changes = [f"{int(now.total('policy_changes_total', by=by))} by the {by}" for by in ("operator", "guard")]
    text.append(f"\n{int(now.total('layers', routing='policy'))} MoE layers")
    text.append(f", {own} more keep their own routing" if own else "")
    text.append(f"; policy changes: {', '.join(changes)}\n", "none")
    return text


def _layers(new: Scrape, now: Scrape, seconds: float | None) -> RenderableType:
    names = now.values("layer_steps_total", "layers")
    span = "since the start" if seconds is None else f"in the last {seconds:.0f} s"
    rows = []
    for name in names:
        steps = new.total("layer_steps_total", layers=name, step="decode")
        if steps:
            sums = [
                new.total(f"distinct_experts_{when}_total", layers=name, step="decode") for when in ("before", "after")
            ]
            rows.append((name, sums[0] / steps, sums[1] / steps))
    if not rows:
        return Text(f"No decode step of two rows or more {span}.\n", "dim")
    table = Table(
        box=None, pad_edge=False, title=f"distinct experts per layer and decode step {span}", title_justify="left"
    )
    for head in ("layers", "before", "after", ""):
        table.add_column(head, justify="left" if head in ("layers", "") else "right", no_wrap=True)
    longest = max(before for _, before, _ in rows)
    for name, before, after in rows:
        table.add_row(name, f"{before:.1f}", f"{after:.1f}", _bar(before, after, longest))
    return Group(table, Text())


def _bar(before: float, after: float, longest: float) -> Text:
    full, kept = (round(WIDTH * value / longest) for value in (before, after))
    bar = (("█" * kept, "green"), ("░" * (full - kept), "dim"), " " * (WIDTH - full))
    return Text.assemble(*bar, f" {100 * (after / before - 1):+.0f} %")


def _rates(new: Scrape, seconds: float | None) -> Iterator[Text]:
    def amount(count: float) -> str:
        return f"{count:,.0f}" if seconds is None else f"{count / max(seconds, 1e-9):,.1f}/s"

    steps = [f"{amount(new.total('steps_total', kind=kind))} {kind}" for kind in STEPS]
    yield Text(f"steps      {', '.join(steps)}")
    rows = [f"{amount(new.total('rows_total', handling=one))} {one}" for one in ("remappable", "exact", "bypassed")]
    yield Text(f"rows       {', '.join(rows)}{_changed(new)}")
    tiers = {price: new.total("price_rows_total", price=price) for price in new.values("price_rows_total", "price")}
    if len(tiers) > 1:
        asked = sorted(tiers, key=lambda price: float("inf") if price == "other" else float(price))
        yield Text(f"prices     {', '.join(f'{amount(tiers[price])} at {price}' for price in asked)}")
    names = ("experts_read_total", "experts_found_total", "experts_read_bytes_total", "experts_wait_seconds_total")
    read, found, size, waited = (new.total(name) - new.total(name, kind=SHADOW) for name in names)
    if needed := read + found:
        share = f"{100 * found / needed:.0f} % of {amount(needed)} experts were in memory"
        yield Text(f"disk       {share}, {amount(size / 2**20)} MiB read, {waited:.1f} s waited")
    decisions = new.total("decision_seconds_count")
    if decisions:
        yield Text(f"decision   {1e6 * new.total('decision_seconds_sum') / decisions:.0f} µs per layer and step")


def _paced(now: Scrape) -> Iterator[Text]:
    """Where a latency objective stands, by batch size."""
    goal = 1e3 * now.total("slo_tpot_seconds")
    for place, batch in enumerate(in_order(now.values("slo_share", "batch"))):
        head = "" if place else f"objective  {goal:g} ms a token\n"
        took = 1e3 * now.total("slo_step_seconds", batch=batch)
        share = f"{100 * now.total('slo_share', batch=batch):.3g} % of the price"
        text = f"{head}           {batch} rows: {f'{took:.1f} ms, ' if took else ''}{share}"
        missed = now.total("slo_missed", batch=batch)
        yield Text(text + ("; missed, more is not allowed" if missed else ""), "yellow" if missed else "")


def _tuned(new: Scrape, now: Scrape) -> Iterator[Text]:
    """What acts at which batch size, and how often it did."""
    name = "tuned_steps_total"
    for place, batch in enumerate(in_order(now.values(name, "batch"))):
        (policy,) = {given["policy"] for given, _ in now.samples[f"{PREFIX}{name}"] if given["batch"] == batch}
        steps = int(new.total(name, batch=batch))
        yield Text(f"{'' if place else 'tuned':10} {batch} rows: {policy} ({steps:,} steps)")


def _changed(new: Scrape) -> str:
    offered = new.total("rows_total", handling="remappable") * new.total("layers", routing="policy")
    if not offered:
        return ""
    return f"; {100 * new.total('rows_remapped_total') / offered:.0f} % of remappable rows x layers changed experts"


def _kl(now: Scrape) -> Text:
    """All that shadow steps have measured since the start: a few rows say little of a mean with a long tail."""
    rows = now.total("kl_nats_count")
    head = f"{int(now.total('shadow_steps_total'))} shadow steps" if rows else "not measured yet"
    if not now.values("max_kl_price", "batch") and not rows:
        return Text(f"KL         {head}", "dim")
    text = Text(f"KL         {head}")
    most = now.total("max_kl")
    for batch in in_order([*dict.fromkeys(now.values("kl_nats_count", "batch") + now.values("max_kl_price", "batch"))]):
        text.append(f"\n           {batch} rows:")
        for policy in now.values("kl_nats_count", "policy"):
            count = now.total("kl_nats_count", batch=batch, policy=policy)
            if count:
                mean = 1000 * now.total("kl_nats_sum", batch=batch, policy=policy) / count
                agree = 100 * now.total("top1_agreements_total", batch=batch, policy=policy) / count
                whose = "" if policy == "server" else " under policies of requests"
                text.append(f" {mean:.3g} mnats, top-1 {agree:.1f} %{whose} ({int(count)} rows)")
        if most and batch in now.values("max_kl_price", "batch"):
            figures = {one: 1000 * now.total("max_kl_figure", batch=batch, figure=one) for one in ("mean", "upper")}
            state = "settled" if now.total("max_kl_settled", batch=batch) else "looking for a higher one"
            price = now.total("max_kl_price", batch=batch)
            text.append(f"; price {price:.3g} ({state})" if price else f"; exact ({state})", "cyan")
            text.append(f", now {figures['mean']:.3g} of {1000 * most:g} mnats allowed")
            text.append(f", at the most {figures['upper']:.3g}" if figures["upper"] else "")
    return text


def _guard(now: Scrape) -> Text:
    if not now.total("guard_enabled"):
        return Text("guard      off", "dim")
    rung, last = (int(now.total(name)) for name in ("guard_rung", "guard_last_rung"))
    state = "as asked" if rung == 0 else "vanilla" if rung == last else "backed off"
    text = Text.assemble("guard      ", (f"{state}, rung {rung} of {last}", "green" if rung == 0 else "yellow"))
    changes = [f"{int(now.total('guard_changes_total', direction=one))} {one}" for one in ("back_off", "recover")]
    text.append(f"; changes: {', '.join(changes)}")
    for figure in now.values("guard_bound", "figure"):
        value, bound = now.total("guard_figure", figure=figure, rung="now"), now.total("guard_bound", figure=figure)
        text.append(f"\n           {figure} {value:.3f} of {bound:g} allowed")
        if rung:
            text.append(f", {now.total('guard_figure', figure=figure, rung='above'):.3f} one rung up")
        text.append(f" ({int(now.total('guard_samples_total', figure=figure))} samples)")
    return text
