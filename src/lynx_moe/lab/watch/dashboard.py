"""The Grafana dashboard (classic JSON model, which Grafana imports from version 9 on): a table of panels, and its JSON.

`docs/reference/grafana.json` is what `lynx-moe dashboard` prints.
"""

import json
from typing import Any

from lynx_moe.engines.shared.families import family_of

SCHEMA = 39  # of Grafana 10.1 and later; newer ones migrate it
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
PICK = 'model_name=~"$model_name",engine=~"$engine"'


def _rate(name: str, by: str = "") -> str:
    """Per second."""
    return _whole(name, by, "rate({}[$__rate_interval])")


def _now(name: str, by: str = "") -> str:
    return _whole(name, by, "{}")


def _whole(name: str, by: str, of: str) -> str:
    """Over everything but the labels `by`, of pipeline stages the sum or the largest, as the family's word says."""
    each = of.format(f"lynx_moe_{name}{{{PICK}}}")
    if family_of(f"lynx_moe_{name}").stages == "max":
        each = f"max without (stage) ({each})"
    return f"sum by ({by}) ({each})" if by else f"sum({each})"


def _most(name: str, by: str = "") -> str:
    """The largest that anybody says, of engines as of stages."""
    return f"max{f' by ({by})' if by else ''} (lynx_moe_{name}{{{PICK}}})"


def _saved() -> str:
    return f"1 - {_rate('distinct_experts_after_total')} / {_rate('distinct_experts_before_total')}"


def _mean(when: str) -> str:
    return f"{_rate(f'distinct_experts_{when}_total', 'layers')} / {_rate('layer_steps_total', 'layers')}"


# title, kind of panel, width of 24, unit, [(expression, legend)]; rows of panels fill from the left
PANELS: list[tuple[str, str, int, str, list[tuple[str, str]]]] = [
    ("Policy", "stat", 8, "none", [(_most("policy_info", "policy"), "{{policy}}")]),
    ("Experts saved", "stat", 4, "percentunit", [(_saved(), "saved")]),
    ("Guard's rung (0: as asked)", "stat", 4, "none", [(_most("guard_rung"), "rung")]),
    ("Policy changes", "stat", 8, "none", [(_now("policy_changes_total", "by"), "{{by}}")]),
    (
        "Distinct experts per layer, before",
        "timeseries",
        12,
        "none",
        [(_mean("before"), "{{layers}}")],
    ),
    (
        "Distinct experts per layer, after",
        "timeseries",
        12,
        "none",
        [(_mean("after"), "{{layers}}")],
    ),
    ("Rows", "timeseries", 8, "ops", [(_rate("rows_total", "handling"), "{{handling}}")]),
    ("Steps", "timeseries", 8, "ops", [(_rate("steps_total", "kind"), "{{kind}}")]),
    (
        "Rows whose experts changed, per layer group",
        "timeseries",
        8,
        "ops",
        [(_rate("rows_remapped_total", "layers"), "{{layers}}")],
    ),
    (
        "KL(exact || policy), mean of shadow steps",
        "timeseries",
        8,
        "none",
        [
            (
                f"{_rate('kl_nats_sum', 'batch, policy')} / {_rate('kl_nats_count', 'batch, policy')}",
                "{{batch}}, {{policy}}",
            ),
            (_most("max_kl"), "max_kl"),
        ],
    ),
    (
        "Top-1 agreement",
        "timeseries",
        8,
        "percentunit",
        [
            (
                f"{_rate('top1_agreements_total', 'batch, policy')} / {_rate('kl_nats_count', 'batch, policy')}",
                "{{batch}}, {{policy}}",
            )
        ],
    ),
    ("Price that max_kl has come to", "timeseries", 8, "none", [(_most("max_kl_price", "batch"), "{{batch}}")]),
    (
        "Latency objective: steps, and the share of the price",
        "timeseries",
        24,
        "none",
        [
            (_most("slo_step_seconds", "batch"), "{{batch}}: seconds"),
            (_most("slo_tpot_seconds"), "objective, seconds"),
            (_most("slo_share", "batch"), "{{batch}}: share"),
        ],
    ),
    (
        "Experts on a disk: needed by steps, per second",
        "timeseries",
        12,
        "ops",
        [
            (_rate("experts_read_total", "kind"), "{{kind}}: read"),
            (_rate("experts_found_total", "kind"), "{{kind}}: in memory"),
        ],
    ),
    (
        "Experts on a disk: waited for, per second",
        "timeseries",
        12,
        "s",
        [(_rate("experts_wait_seconds_total", "kind"), "{{kind}}")],
    ),
    (
        "Guard: figures and bounds",
        "timeseries",
        12,
        "percentunit",
        [
            (_most("guard_figure", "figure, rung"), "{{figure}}, {{rung}}"),
            (_most("guard_bound", "figure"), "{{figure}}, bound"),
        ],
    ),
    (
        "Guard: changes of the rung",
        "timeseries",
        6,
        "none",
        [(_whole("guard_changes_total", "direction", "increase({}[$__rate_interval])"), "{{direction}}")],
    ),
    (
        "Time of a decision, of the guard, of shadows",
        "timeseries",
        6,
        "s",
        [
            (
                f"{_rate('decision_seconds_sum', 'engine')} / {_rate('decision_seconds_count', 'engine')}",
                "decision, per layer and step",
            ),
            (_rate("guard_seconds_total", "engine"), "guard, per second"),
            (_rate("shadow_seconds_total", "engine"), "shadow steps, per second"),
        ],
    ),
]
HEIGHTS = {"stat": 4, "timeseries": 8}


def dashboard() -> dict[str, Any]:
    """The dashboard as plain dictionaries, lists and numbers."""
    panels, left, top = [], 0, 0
    for number, (title, kind, width, unit, targets) in enumerate(PANELS, 1):
        place = {"h": HEIGHTS[kind], "w": width, "x": left, "y": top}
        panels.append(_panel(number, title, kind, unit, targets) | {"gridPos": place})
        left = (left + width) % 24
        top += HEIGHTS[kind] if left == 0 else 0
    return {
        "uid": "lynx-moe",
        "title": "lynx-moe",
        "tags": ["vllm", "lynx-moe"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_source(), _variable("model_name"), _variable("engine")]},
        "panels": panels,
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


def _panel(number: int, title: str, kind: str, unit: str, targets: list[tuple[str, str]]) -> dict[str, Any]:
    queries = [
        {"refId": chr(ord("A") + place), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
        for place, (expression, legend) in enumerate(targets)
    ]
    panel = {
        "id": number,
        "type": kind,
        "title": title,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": queries,
    }
    if title == "Policy":
        panel["options"] = {
            "textMode": "name",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    return panel


def _source() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}


def _variable(label: str) -> dict[str, Any]:
    return {
        "name": label,
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_values(lynx_moe_steps_total, {label})",
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }
