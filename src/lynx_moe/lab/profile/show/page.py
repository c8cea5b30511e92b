"""The page of a profile, from the saved record alone."""

import base64
from pathlib import Path
from typing import Any

from lynx_moe.lab.profile.measure import missing, part
from lynx_moe.lab.profile.show import pictures, words
from lynx_moe.lab.profile.show.verdict import command, verdict

Line = dict[str, Any]
TEMPLATE = Path(__file__).with_name("page.html.jinja")


def draw(whole: Line, path: Path) -> Path:
    """Writes the page to `path`, its pictures beside it (`<stem>-<key>.png`, and all in `<stem>.png`), and returns
    `path`.

    Raises ValueError for a record that is not whole, or whose lines lack something.
    """
    import jinja2

    if lacking := missing(whole):
        raise ValueError(
            f"the record lacks {', '.join(lacking)}; run the same `lynx-moe profile` again, it goes on there"
        )
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    try:
        sections = [_section(figure, whole, path) for figure in pictures.shown(whole)]
        pictures.board(whole, path.with_suffix(".png"))
        html = template.render(
            name=Path(whole["settings"]["model"]).name,
            settings=whole["settings"],
            environment=whole["environment"],
            routing=part(whole, "routing")[0],
            sections=sections,
            check=part(whole, "check"),
            mnats=words.mnats,
            percent=words.percent,
            verdict=verdict(whole),
            command=command(whole),
        )
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"the record's lines are not those of a profile: {type(error).__name__}: {error}") from None
    path.write_text(html, encoding="utf-8")
    return path


def _section(figure: pictures.Figure, whole: Line, path: Path) -> Line:
    file = pictures.picture(figure, whole, path.with_name(f"{path.stem}-{figure.key}.png"))
    return {
        "title": figure.title,
        "found": figure.found(whole),
        "image": base64.b64encode(file.read_bytes()).decode(),
        "about": pictures.about(figure, whole),
    }
