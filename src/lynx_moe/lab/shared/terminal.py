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


def is_endless(made: Console) -> bool:
    """Whether a line may be as long as it likes; then a row of a table is one line."""
    return made.width >= WIDE


def fitted(made: Console, shown: RenderableType) -> RenderableType:
    """What would fill the whole width of a console, such as a panel: where lines are endless as wide as its text."""
    if not is_endless(made):
        return shown
    return Constrain(shown, Measurement.get(made, made.options, shown).maximum)
