"""A policy of your own, outside the package: `python examples/own_policy.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import lynx_moe
from lynx_moe.policies.contract.forms import Rerouting
from lynx_moe.policies.contract.step import Step


@dataclass(frozen=True, kw_only=True)
class Popular(Rerouting):
    """Every row's favourite stays, and each expert that at least `votes` rows chose. Rows choose anew among these."""

    name: ClassVar[str] = "popular"
    summary: ClassVar[str] = "favourites, and experts with at least `votes` rows"
    source: ClassVar[str] = "this example"
    votes: int = 3

    def keep(self, step: Step) -> Tensor:  # bool [E]
        return step.union(step.best(1)) | (step.votes() >= self.votes)


MODEL = str(Path(__file__).parents[1] / "models/qwen3-moe")
tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(MODEL, experts_implementation="eager").eval()
prompts = [f"sort: {a} {b} {a + 3} {b - 7} ->" for a in (11, 24, 36, 48) for b in (52, 61, 77, 89)]
inputs = tokenizer(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
for votes in (2, 3, 5):
    with lynx_moe.apply(model, Popular(votes=votes)) as run:
        texts = tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=20, do_sample=False))
        print(f"votes={votes}: {run.stats().mean_before:.1f} -> {run.stats().mean_after:.1f} experts; {texts[0]}")
