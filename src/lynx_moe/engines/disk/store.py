"""The experts of a model, all layers together: what engines talk to."""

from dataclasses import asdict
from typing import Any

from torch import Tensor

from lynx_moe.engines.disk.slots import Slots, Sums
from lynx_moe.engines.disk.source import Source

COLUMNS = tuple(asdict(Sums()))


class Store:
    """`slots` experts of each layer of what is read from. `kind` is that of the step that runs, by which is counted."""

    def __init__(self, reader: Source, slots: list[int]) -> None:
        self.reader = reader
        self.layers = [Slots(reader, number, count) for number, count in enumerate(slots)]
        self.by_name = {region.name: slots for region, slots in zip(reader.layers, self.layers, strict=True)}
        self.by_kind: dict[str, Sums] = {}
        self.begin("idle")

    def load_cost(self, name: str) -> Tensor:
        """float32 [E]: what loading each expert of the layer of this name costs now, as `Slots.load_cost`."""
        return self.by_name[name].load_cost()

    def load_costs(self) -> dict[str, Tensor]:
        """The same of every layer, by name."""
        return {name: slots.load_cost() for name, slots in self.by_name.items()}

    def begin(self, kind: str) -> None:
        """A step of this kind begins."""
        self.kind = kind
        self.sums = self.by_kind.setdefault(kind, Sums())

    def reset(self) -> None:
        """All counts begin at zero; what is in memory stays."""
        self.by_kind = {}
        self.begin(self.kind)

    def told(self) -> dict[str, Any]:
        """In plain numbers: slots and experts of all layers, bytes of memory, how the file is read, sums by kind."""
        tables = [table for slots in self.layers for table in slots.tables]
        return {
            "file": str(self.reader.path),
            "direct": self.reader.direct,
            "slots": sum(len(slots) for slots in self.layers),
            "experts": sum(len(slots.slot_E) for slots in self.layers),
            "slot_bytes": sum(table.numel() * table.element_size() for table in tables),
            "steps": {kind: asdict(sums) for kind, sums in self.by_kind.items()},
        }
