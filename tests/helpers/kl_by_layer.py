"""KL per unit of x, layer by layer: `python tests/helpers/kl_by_layer.py MODEL [DATA]`.

x is the squared weight share that a row loses in a layer. In one forward as many copies of a batch as there are layers
go side by side, and in each `priced:price=0.1` acts in one layer alone. Documents of the split "calibrate".
"""

import sys
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch

from lynx_moe import apply
from lynx_moe.lab.bakeoff.together import Together
from lynx_moe.lab.fidelity import measure
from lynx_moe.lab.fidelity.lockstep import decode_together
from lynx_moe.lab.shared.documents import batches
from lynx_moe.policies import make_policy
from lynx_moe.policies.contract.step import Step
from lynx_moe.policies.priced import Priced
from lynx_moe.routing import Routing
from lynx_moe.testbed.locate import path as model_path

SEQUENCES, STEPS = 12, 6  # of a file; of the testbed's exercises 112, of their own lengths


@dataclass(frozen=True, kw_only=True)
class InOneLayer(Priced):
    """Acts in layer `only`, and adds up x there."""

    only: int = 0
    here: bool = field(default=False, compare=False)
    lost: list[float] = field(default_factory=list, compare=False)

    @property
    def layers_differ(self) -> bool:
        return True

    def at_layer(self, layer: int) -> Self:
        return replace(self, here=layer == self.only)

    def decide(self, *given: Any) -> Routing:
        return self.route(*given)

    def propose(self, step: Step) -> Routing:
        if not self.here:
            return step.own
        routing = super().propose(step)
        self.lost.append(self.values(step).where(routing.ids != step.own.ids, 0.0).sum(-1).mean().item())
        return routing


def main(name: str, data: str = "testbed") -> None:
    sizes = (SEQUENCES, STEPS) if data != "testbed" else (112, 32)
    given = measure.Settings(
        model=str(model_path(name)), data=data, num_sequences=sizes[0], batch_sizes=(2,), steps=sizes[1],
        dtype="float32", split="calibrate",
    )  # fmt: skip
    documents = measure.documents(given)
    model, (plain,) = measure.open_model(given, ["vanilla"])
    numbers = [int(layer.name.split(".layers.")[1].split(".")[0]) for layer in plain.layers]
    members = [InOneLayer(price=0.1, only=number) for number in numbers]
    run = apply(model, Together(members=(make_policy("vanilla"), *members)))
    effects = [
        decode_together(model, batch, run, len(members) + 1)
        for batch in batches(documents, min(12, len(documents)), "mixed", 0)
    ]
    print("| layer | KL, mnats | x | KL / x, nats |\n| --- | --- | --- | --- |")
    for place, member in enumerate(members):
        kl = torch.cat([each[place].kl.flatten() for each in effects]).mean().item()
        x = sum(member.lost) / len(member.lost)
        print(f"| {member.only} | {1000 * kl:.2f} | {x:.4f} | {kl / x:.3f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
