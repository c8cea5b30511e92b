"""The one console of all commands. In a pipe a line is as long as what it says: nothing is cut at 80 columns."""

import os

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.measure import Measurement

WIDE = 100_000  # columns where nobody looks on; a table is as wide as its text, whatever there is


def console() -> Console:
    """Of a terminal's width on a terminal, and where COLUMNS says one; else as wide as need be."""
    made = Console()
    return made if made.is_terminal or os.environ.get("COLUMNS") else Console(width=WIDE)


def fitted(made: Console, shown: RenderableType) -> RenderableType:
    """What would fill the whole width of a console, such as a panel: off a terminal as wide as its text."""
    if made.is_terminal:
        return shown
    return Constrain(shown, Measurement.get(made, made.options, shown).maximum)
