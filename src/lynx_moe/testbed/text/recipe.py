"""The model *text*, and what it is taught."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from lynx_moe.testbed.model.families import Family
from lynx_moe.testbed.text.data import Windows
from lynx_moe.testbed.text.sources import KINDS
from lynx_moe.testbed.training.course import Batches

NAME = "text"
TEXT = Family(
    config_class=Qwen3MoeConfig,
    model_class=Qwen3MoeForCausalLM,
    config={
        "hidden_size": 192,
        "num_hidden_layers": 10,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 256,
        "moe_intermediate_size": 32,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
    },
    num_tokens=60_000_000,
    balance_coef=0.001,
    learning_rate=4e-3,
    batch_rows=8,
    row_length=512,
    micro_rows=4,
    flat_until=0.8,
)
MEASURED_ROWS = 16


@dataclass(frozen=True)
class TextCourse:
    """Prose and code from the collected corpus in `folder`; the log tells the loss on the split that is for tuning."""

    folder: Path
    family: Family = TEXT
    log_every: int = 10
    evaluate_every: int = 200

    def prepare(self, tokenizer: PreTrainedTokenizerFast, work: Path) -> None:
        """Nothing: the corpus is encoded before."""

    def batches(self, family: Family, tokenizer: PreTrainedTokenizerFast, work: Path) -> Batches:
        """Windows over the training split."""
        return Windows(self.folder, "train", family, tokenizer.bos_token_id)

    def measure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        """Nats per token of each kind."""
        windows = Windows(self.folder, "tune", self.family, tokenizer.bos_token_id)
        return {kind: round(self._nats(model, windows, number), 4) for number, kind in enumerate(KINDS)}

    @torch.inference_mode()
    def _nats(self, model: PreTrainedModel, windows: Windows, kind: int) -> float:
        rows = torch.stack([torch.from_numpy(windows.window(n, kind).astype("int64")) for n in range(MEASURED_ROWS)])
        rows_BL = F.pad(rows, (1, 0), value=windows.bos)
        found = []
        for ids_BL in torch.split(rows_BL, self.family.micro_rows or MEASURED_ROWS):
            logits = model(input_ids=ids_BL.to(model.device), use_cache=False).logits[:, :-1].cpu()
            found.append(F.cross_entropy(logits.flatten(0, 1), ids_BL[:, 1:].flatten()))
        return torch.stack(found).mean().item()
