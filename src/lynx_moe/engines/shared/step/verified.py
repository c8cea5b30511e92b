"""The rows that verify drafts, counted."""

from typing import Any

from lynx_moe.engines.shared.step.rows import StepRows


class VerifiedRows:
    """Since the last reset. rows: all of them; remappable: those that could be remapped."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.rows = self.remappable = 0

    def count(self, rows: StepRows) -> None:
        """Adds those of a step."""
        self.rows += rows.num_verify_rows
        self.remappable += rows.num_verify_remappable

    def told(self) -> dict[str, Any]:
        """The sums in plain numbers."""
        return {"rows": self.rows, "remappable_rows": self.remappable}
