"""The page of a bakeoff, from the saved record alone: pictures and tables in one file."""

import base64
from pathlib import Path
from typing import Any

from lynx_moe.lab.bakeoff import findings, plot
from lynx_moe.lab.bakeoff.grids import short
from lynx_moe.lab.shared import lines, scores, tables

Line = dict[str, Any]
TEMPLATE = Path(__file__).with_name("page.html.jinja")
ABOUT = {
    "fronts": "Each line joins the settings of one method that its tune front has; below and left is better.",
    "likelihood": "The same settings by what the true next token's log-likelihood gained or lost; above is better.",
    "half": "Where each method's front crosses half of the experts; left out are methods that keep no so few, or have "
    "nothing near.",
}


def draw(whole: Line, path: Path) -> Path:
    """Writes the page, its pictures beside it, and returns `path`. Raises ValueError for a record without results."""
    import jinja2

    pictures = [
        {"about": ABOUT[file.stem], "image": base64.b64encode(file.read_bytes()).decode()}
        for file in plot.draw(whole, path.parent)
    ]
    several = [*findings.all_comparisons(whole), *findings.front_tables(whole), findings.cost_table(whole)]
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    html = template.render(
        name=Path(whole["settings"]["model"]).name,
        settings=whole["settings"],
        environment=whole["environment"],
        pictures=pictures,
        tables=[*several, *exact_tables(path.with_name("eval.jsonl")), findings.settings_table(whole)],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def exact_tables(file: Path) -> list[findings.Table]:
    """The means over tasks of an evaluation that lies beside the record, if there is one."""
    if not file.is_file():
        return []
    means = scores.overall(lines.load(file, "evaluation")["results"])
    short_rows = [row | {"spec": short(row["spec"])} for row in means]
    head, rows = tables.quality_table(short_rows, "value", "mean of tasks, %")
    return [("Exact match of the settings that no other one beats", head, rows)]


def markdown(whole: Line) -> str:
    """The tables but that of settings, for documents."""
    several = [*findings.all_comparisons(whole), *findings.front_tables(whole), findings.cost_table(whole)]
    return "\n".join(f"{title}:\n\n{tables.markdown(head, rows)}\n" for title, head, rows in several)
