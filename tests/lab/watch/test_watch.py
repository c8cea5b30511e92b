"""Frames of `lynx-moe top` from given metrics, and the dashboard's JSON against Grafana's own types."""

import io
import json
import re
from typing import Any

import pytest
from expositions import metrics
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from places import DOCS, REFERENCE
from rich.console import Console

from lynx_moe.engines.shared.families import FAMILIES, GROUPS, WORKERS, family_of, groups
from lynx_moe.lab.watch import dashboard
from lynx_moe.lab.watch.frame import frame
from lynx_moe.lab.watch.scrape import Scrape, parse


def pipeline() -> Scrape:
    """118 steps of 8 rows in two stages of one layer each, of which the second one's guard has backed off twice."""
    lines = []
    for stage, changed in (("0", 118 * 8), ("1", 118 * 4)):
        labels = f'model_name="m",engine="0",stage="{stage}"'
        lines += [
            f'lynx_moe_steps_total{{{labels},kind="decode"}} 118',
            f'lynx_moe_rows_total{{{labels},handling="remappable"}} {118 * 8}',
            f'lynx_moe_layer_steps_total{{{labels},layers="0{stage}",step="decode"}} 118',
            f'lynx_moe_distinct_experts_before_total{{{labels},layers="0{stage}",step="decode"}} {118 * 20}',
            f'lynx_moe_distinct_experts_after_total{{{labels},layers="0{stage}",step="decode"}} {118 * 10}',
            f'lynx_moe_rows_remapped_total{{{labels},layers="0{stage}",step="decode"}} {changed}',
            f'lynx_moe_layers{{{labels},routing="policy"}} 1',
            f'lynx_moe_policy_changes_total{{{labels},by="operator"}} 1',
            f'lynx_moe_policy_info{{{labels},policy="{"oea" if stage == "0" else "vanilla"}",asked="oea"}} 1',
            f"lynx_moe_guard_enabled{{{labels}}} 1",
            f"lynx_moe_guard_rung{{{labels}}} {2 * int(stage)}",
            f"lynx_moe_guard_last_rung{{{labels}}} 3",
        ]
    return Scrape(parse("\n".join(lines) + "\n"), 20.0)


def shown(now: Scrape, earlier: Scrape | None = None) -> str:
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(frame(now, earlier, "http://h:1"))
    return console.export_text()


def test_a_frame_shows_means_since_the_last_one() -> None:
    earlier, now = Scrape(parse(metrics(100, 40, 40)), 10.0), Scrape(parse(metrics(300, 44, 24)), 20.0)
    text = shown(now, earlier)
    assert "46.0" in text  # (300 * 44 - 100 * 40) / 200
    assert "16.0" in text
    assert "-65 %" in text
    assert "20.0/s decode" in text
    whole = shown(now)
    assert "44.0" in whole
    assert "24.0" in whole
    assert "300 decode" in whole


def test_a_frame_puts_the_stages_of_a_pipeline_together() -> None:
    text = shown(pipeline())
    assert "118 decode" in text
    assert "944 remappable" in text
    assert "75 % of remappable rows x layers" in text  # 8 of 8 rows in one layer, 4 of 8 in the other
    assert "2 MoE layers" in text
    assert "1 by the operator" in text
    assert "backed off, rung 2 of 3" in text
    assert "oea in stage 0, vanilla in stage 1" in text
    assert text.count("lynx-moe top") == 1


def test_a_frame_tells_the_kl_and_where_its_bound_has_come_to() -> None:
    labels = 'model_name="m",engine="0",stage="0"'
    lines = [f"lynx_moe_shadow_steps_total{{{labels}}} 40", f"lynx_moe_max_kl{{{labels}}} 0.01"]
    for batch, policy, rows, kl in (
        ("9-16", "server", 500, 1.5),
        ("2-4", "server", 40, 0.02),
        ("2-4", "request", 8, 0.8),
    ):
        mine = f'{labels},batch="{batch}",policy="{policy}"'
        lines += [
            f"lynx_moe_kl_nats_count{{{mine}}} {rows}",
            f"lynx_moe_kl_nats_sum{{{mine}}} {kl}",
            f"lynx_moe_top1_agreements_total{{{mine}}} {rows * 0.98}",
        ]
    for batch, price, settled in (("9-16", 0.053, 1), ("2-4", 0, 0)):
        lines += [
            f'lynx_moe_max_kl_price{{{labels},batch="{batch}"}} {price}',
            f'lynx_moe_max_kl_settled{{{labels},batch="{batch}"}} {settled}',
            f'lynx_moe_max_kl_figure{{{labels},batch="{batch}",figure="mean"}} {price / 10}',
        ]
    text = shown(Scrape(parse(metrics(100, 40, 30) + "\n".join(lines) + "\n"), 20.0))
    assert "KL         40 shadow steps" in text
    assert "9-16 rows: 3 mnats, top-1 98.0 % (500 rows); price 0.053 (settled), now 5.3 of 10 mnats allowed" in text
    assert "100 mnats, top-1 98.0 % under policies of requests (8 rows)" in text.replace("\n", " ")
    assert text.index("2-4 rows") < text.index("9-16 rows")
    assert "exact (looking for a higher one)" in " ".join(text.split())
    assert "not measured yet" in shown(Scrape(parse(metrics(100, 40, 30)), 20.0))


def test_a_frame_tells_which_tuned_setting_acts_at_which_size() -> None:
    labels = 'model_name="m",engine="0",stage="0"'
    settings = (("9-16", "priced:price=0.02", 1200), ("1", "vanilla", 7))
    lines = [
        f'lynx_moe_tuned_steps_total{{{labels},batch="{batch}",policy="{policy}"}} {steps}'
        for batch, policy, steps in settings
    ]
    text = shown(Scrape(parse(metrics(100, 40, 30) + "\n".join(lines) + "\n"), 20.0))
    assert "tuned      1 rows: vanilla (7 steps)" in text
    assert "9-16 rows: priced:price=0.02 (1,200 steps)" in text
    assert text.index("1 rows: vanilla") < text.index("9-16 rows")
    assert "tuned" not in shown(Scrape(parse(metrics(100, 40, 30)), 20.0))


def test_a_frame_tells_what_steps_read_and_not_what_shadow_steps_read_beside_it() -> None:
    labels, numbers = 'model_name="m",engine="0",stage="0"', {"read": 25, "found": 75, "read_bytes": 2**21}
    lines = [
        f'lynx_moe_experts_{name}_total{{{labels},kind="{kind}"}} {value * times}'
        for name, value in {**numbers, "wait_seconds": 1.5}.items()
        for kind, times in (("decode", 1), ("shadow", 9))
    ]
    text = shown(Scrape(parse(metrics(100, 40, 30) + "\n".join(lines) + "\n"), 20.0))
    assert "disk       75 % of 100 experts were in memory, 2 MiB read, 1.5 s waited" in text
    assert "disk" not in shown(Scrape(parse(metrics(100, 40, 30)), 20.0))


def test_every_engine_has_a_panel_of_its_own() -> None:
    other = metrics(300, 44, 24).replace('model_name="m"', 'model_name="n"')
    text = shown(Scrape(parse(metrics(100, 40, 30) + other), 20.0))
    assert text.count("lynx-moe top") == 2
    assert "100 decode" in text
    assert "300 decode" in text
    assert "400 decode" not in text


def test_a_frame_without_steps_or_after_a_restart_says_so() -> None:
    now = Scrape(parse(metrics(100, 40, 30)), 20.0)
    assert "No decode step of two rows or more in the last 10 s" in shown(now, Scrape(now.samples, 10.0))
    restarted = shown(Scrape(parse(metrics(10, 40, 30)), 30.0), now)
    assert "40.0" in restarted


def test_a_frame_shows_where_the_guard_stands() -> None:
    calm, backed_off = shown(Scrape(parse(metrics(1, 4, 3)), 0.0)), shown(Scrape(parse(metrics(1, 4, 3, rung=2)), 0.0))
    assert "as asked, rung 0 of 2" in calm
    assert "mass_lost 0.031 of 0.1 allowed" in calm
    assert "instead of lynx: the guard has backed off" in backed_off
    assert "vanilla, rung 2 of 2" in backed_off
    assert "0.250 one rung up" in backed_off


@pytest.mark.parametrize("count", [0, 1, 3, 8, 9, 48, 94])
def test_layer_groups_are_few_and_cover_every_layer_once(count: int) -> None:
    numbers = [3 + 2 * place for place in range(count)]
    found = groups(numbers)
    assert len(found) == min(count, GROUPS)
    assert [place for _, members in found for place in members] == list(range(count))
    assert len({label for label, _ in found}) == len(found)
    if count:
        sizes = [len(members) for _, members in found]
        assert max(sizes) - min(sizes) <= 1
        assert found[0][0].startswith("03")


def test_names_follow_prometheus_conventions() -> None:
    for name, family in FAMILIES.items():
        assert name.startswith("lynx_moe_")
        assert not name.endswith(("_total", "_count", "_sum"))
        assert family.meaning.endswith(".")
        assert all(label.isidentifier() for label in family.labels)
        assert family.stages in family.text


def test_the_document_says_of_every_metric_what_it_is_over_stages() -> None:
    pages = "\n".join(path.read_text() for path in sorted(DOCS.rglob("*.md")))
    rows = re.findall(r"^\| `(lynx_moe_\w+)`(.*)\|$", pages, re.MULTILINE)
    told = {}
    for first, rest in rows:
        cells = rest.split("|")
        more = re.findall(r"`(\.\.\.)?(_\w+)`", cells[0])
        # "`lynx_moe_a_b_total`, `..._c_total`" and "`lynx_moe_a_b`, `_c`" name what stands beside the last word
        for name in [first, *(first.removesuffix("_total").rpartition("_")[0] + ending for _, ending in more)]:
            told[name] = cells[-1].strip()
    assert WORKERS in told
    del told[WORKERS]
    for name in told:
        assert told[name].startswith(family_of(name).stages), (name, told[name])
    named = {known for known in FAMILIES for name in told if family_of(name) is FAMILIES[known]}
    assert named == set(FAMILIES)


def test_the_dashboard_puts_stages_together_as_the_families_say() -> None:
    """`sum` over what a stage tells of its own, and never over what all of them tell alike."""
    asked = 0
    for panel in dashboard.dashboard()["panels"]:
        for expression in (target["expr"] for target in panel["targets"]):
            assert 'stage="' not in expression
            for match in re.finditer(r"lynx_moe_\w+", expression):
                around, name = expression[: match.start()].rpartition(" / ")[2], match[0]
                assert ("max" in around) == (family_of(name).stages == "max"), expression
                asked += 1
    assert asked > 15


def test_the_dashboard_loads_into_grafana_s_own_types_without_a_loss() -> None:
    register_default_plugins()
    made = dashboard.dashboard()
    loaded = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(made)))
    assert not missing(made, loaded), missing(made, loaded)
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])


def missing(given: Any, loaded: Any, where: str = "") -> list[str]:
    """Paths of what a value holds and the loaded one does not."""
    if isinstance(given, dict):
        return [
            path
            for key, value in given.items()
            for path in (missing(value, loaded[key], f"{where}.{key}") if key in loaded else [f"{where}.{key}"])
        ]
    if isinstance(given, list):
        if len(given) != len(loaded):
            return [where]
        return [
            p
            for place, (a, b) in enumerate(zip(given, loaded, strict=True))
            for p in missing(a, b, f"{where}[{place}]")
        ]
    return [] if given == loaded else [where]


def test_panels_do_not_overlap_and_fill_the_width() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard.dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len(taken) == 24 * (1 + max(y for _, y in taken))


def test_the_file_in_docs_is_what_the_command_prints() -> None:
    assert (REFERENCE / "grafana.json").read_text() == dashboard.text()


def test_a_negative_gauge_is_no_counter_that_has_begun_anew() -> None:
    labels = 'model_name="m",engine="0",stage="0"'
    change = f'lynx_moe_logprob_change_nats{{{labels},batch="5-8",policy="server"}} -0.01\n'
    earlier, now = (Scrape(parse(metrics(steps, 40, 40) + change), 10.0) for steps in (100, 300))
    assert now.since(earlier).total("layer_steps_total") == now.total("layer_steps_total") - earlier.total(
        "layer_steps_total"
    )
