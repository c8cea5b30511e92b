"""What there is of a cell that is not finished: a file beside the record, a line per batch and setting.

A line is written as soon as its batch is done, so a killed run goes on behind it. The line's figures go into the record
when the cell is whole, whether it was interrupted or not.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Pieces:
    """Of one cell, which `cell` names, of the record at `path`. The record must be there: it guards the settings."""

    def __init__(self, path: Path, cell: Mapping[str, Any]) -> None:
        self._path, self._cell = path.with_suffix(".pieces.jsonl"), dict(cell)
        self._write(self._lines())  # without a line that a kill has cut, or the next one would be joined to it
        self._found = {(line["spec"], line["batch"]): line["figures"] for line in self._lines() if self._is_mine(line)}

    def find(self, spec: str, batch: int) -> Line | None:
        """The figures of a setting on the batch of this number."""
        return self._found.get((spec, batch))

    def has(self, specs: Collection[str], batch: int) -> bool:
        return all((spec, batch) in self._found for spec in specs)

    def add(self, batch: int, figures: Mapping[str, Line]) -> None:
        """Keeps the figures of every setting on one batch, by spec."""
        new = [{"cell": self._cell, "spec": spec, "batch": batch, "figures": each} for spec, each in figures.items()]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in new))
        self._found |= {(line["spec"], batch): line["figures"] for line in new}

    def forget(self, specs: Collection[str]) -> None:
        """These settings of the cell are in the record."""
        self._write([line for line in self._lines() if not (self._is_mine(line) and line["spec"] in specs)])

    def _write(self, lines: list[Line]) -> None:
        if not lines:
            self._path.unlink(missing_ok=True)
            return
        part = self._path.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        part.replace(self._path)

    def _is_mine(self, line: Line) -> bool:
        return bool(line["cell"] == self._cell)

    def _lines(self) -> list[Line]:
        """All whole lines."""
        if not self._path.exists():
            return []
        text = self._path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
