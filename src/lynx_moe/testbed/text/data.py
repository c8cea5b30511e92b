"""Training rows of *text*: windows over the tokens of prose and code in turn, in an order that the seed fixes.

B rows of L tokens. `batch(step)` depends on the seed and the step alone, so a resumed run sees the same data.
"""

from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
import torch

from lynx_moe.testbed.model.families import Family
from lynx_moe.testbed.text.sources import KINDS
from lynx_moe.testbed.text.tokens import tokens
from lynx_moe.testbed.training.data import Batch


class Windows:
    """Rows of `<bos>` and L - 1 tokens of text; every token is seen once before any is seen twice.

    Two rows of one kind follow two of the other, so that one worker in two sees both. A window may begin
    within a document, and documents within it are kept apart by `<eos>` alone.
    """

    def __init__(self, folder: Path, split: str, family: Family, bos: int) -> None:
        self.tokens = [tokens(folder, split, kind) for kind in KINDS]
        self.family, self.bos = family, bos

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step`."""
        first, num_rows, length = step * self.family.batch_rows, self.family.batch_rows, self.family.row_length
        ids = np.full((num_rows, length), self.bos, dtype=np.int64)
        for row in range(num_rows):
            turn, place = divmod(first + row, 2 * len(KINDS))
            ids[row, 1:] = self.window(2 * turn + place % 2, place // 2)
        learn = torch.ones(num_rows, length, dtype=torch.bool)
        learn[:, 0] = False
        return Batch(torch.from_numpy(ids), torch.arange(length).expand(num_rows, length), learn)

    def window(self, number: int, kind: int) -> "np.ndarray[tuple[int], np.dtype[np.uint16]]":
        """The `number`-th window of a kind: epoch by epoch, each in another order and from another start."""
        size = self.family.row_length - 1
        flat = self.tokens[kind]
        num_windows = (len(flat) - size) // size
        epoch, place = divmod(number, num_windows)
        shift = Random(f"{self.family.seed}/{kind}/{epoch}").randrange(size)
        start = shift + int(_order(f"{self.family.seed}/{kind}/{epoch}", num_windows)[place]) * size
        return np.asarray(flat[start : start + size])


@lru_cache(maxsize=4)
def _order(seed: str, number: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.random.default_rng(list(seed.encode())).permutation(number)
