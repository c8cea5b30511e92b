"""The Grafana dashboard (classic JSON model, which Grafana imports from version 9 on): a table of panels, and its JSON.

`docs/reference/grafana.json` is what `lynx-moe dashboard` prints.
"""

import json
from typing import Any

SCHEMA = 39  # of Grafana 10.1 and later; newer ones migrate it
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
PICK = 'model_name=~"$model_name",engine=~"$engine"'
MEAN = "sum by (layers) (rate(lynx_moe_distinct_experts_{when}_total{{{pick}}}[$__rate_interval])) / sum by (layers) "
MEAN += "(rate(lynx_moe_layer_steps_total{{{pick}}}[$__rate_interval]))"
SHARE = "1 - sum(rate(lynx_moe_distinct_experts_after_total{%s}[$__rate_interval])) / "
SHARE += "sum(rate(lynx_moe_distinct_experts_before_total{%s}[$__rate_interval]))"


def _rate(name: str, by: str, extra: str = "") -> str:
    return f"sum by ({by}) (rate(lynx_moe_{name}{{{PICK}{extra}}}[$__rate_interval]))"


def _gauge(name: str, extra: str = "") -> str:
    return f"lynx_moe_{name}{{{PICK}{extra}}}"


# title, kind of panel, width of 24, unit, [(expression, legend)]; rows of panels fill from the left
PANELS: list[tuple[str, str, int, str, list[tuple[str, str]]]] = [
    ("Policy", "stat", 8, "none", [(_gauge("policy_info"), "{{policy}}")]),
    ("Experts saved", "stat", 4, "percentunit", [(SHARE % (PICK, PICK), "saved")]),
    ("Guard's rung (0: as asked)", "stat", 4, "none", [(f"max({_gauge('guard_rung')})", "rung")]),
    ("Policy changes", "stat", 8, "none", [(f"sum by (by) ({_gauge('policy_changes_total')})", "{{by}}")]),
    (
        "Distinct experts per layer, before",
        "timeseries",
        12,
        "none",
        [(MEAN.format(when="before", pick=PICK), "{{layers}}")],
    ),
    (
        "Distinct experts per layer, after",
        "timeseries",
        12,
        "none",
        [(MEAN.format(when="after", pick=PICK), "{{layers}}")],
    ),
    ("Rows", "timeseries", 8, "ops", [(_rate("rows_total", "handling", ',stage="0"'), "{{handling}}")]),
    ("Steps", "timeseries", 8, "ops", [(_rate("steps_total", "kind", ',stage="0"'), "{{kind}}")]),
    (
        "Rows whose experts changed, per layer group",
        "timeseries",
        8,
        "ops",
        [(_rate("rows_remapped_total", "layers"), "{{layers}}")],
    ),
    (
        "Guard: figures and bounds",
        "timeseries",
        12,
        "percentunit",
        [
            (f"max by (figure, rung) ({_gauge('guard_figure')})", "{{figure}}, {{rung}}"),
            (f"max by (figure) ({_gauge('guard_bound')})", "{{figure}}, bound"),
        ],
    ),
    (
        "Guard: changes of the rung",
        "timeseries",
        6,
        "none",
        [(f"sum by (direction) (increase({_gauge('guard_changes_total')}[$__rate_interval]))", "{{direction}}")],
    ),
    (
        "Time of a decision, and of the guard",
        "timeseries",
        6,
        "s",
        [
            (
                f"{_rate('decision_seconds_sum', 'engine')} / {_rate('decision_seconds_count', 'engine')}",
                "decision, per layer and step",
            ),
            (_rate("guard_seconds_total", "engine"), "guard, per second"),
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
