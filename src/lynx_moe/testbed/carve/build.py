"""The whole of it: weights read, layers carved, folder written and checked, then put in its place at once.

An interrupted build leaves what was there before, and a folder beside it that the next build clears away.
"""

import json
import shutil
import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

from lynx_moe.testbed.carve import check, source, texts, write
from lynx_moe.testbed.carve.card import RECORD, card
from lynx_moe.testbed.carve.walk import SMOLLM, Sizes, carve_layers
from lynx_moe.testbed.tasks.split import HELD_OUT

WINDOWS, HELD_OUT_WINDOWS = 128, 48
TEXT_CHARACTERS = 1000  # of a document, of which there are two hundred: many short ones say more than a few long ones


def build(
    folder: Path,
    advance: Callable[[str, int, int], None],
    sizes: Sizes = SMOLLM,
    width: int = texts.WIDTH,
    seed: int = 0,
) -> None:
    """Puts the carved model into `folder`. `advance` is told what is done: a word, how many of how many.

    Raises ValueError if a package is missing, or there is too little text.
    """
    source.check()
    start = time.monotonic()
    advance("reading weights and text", 0, 1)
    dense, tokenizer = source.load()
    found = texts.documents()
    ids_WT = texts.windows(found, tokenizer, WINDOWS, False, width)
    test_VT = texts.windows(found, tokenizer, HELD_OUT_WINDOWS, True, width)
    layers = []
    for layer in carve_layers(dense, ids_WT, sizes, seed):
        layers.append(layer)
        advance("carving layers", len(layers), dense.config.num_hidden_layers)
    advance("writing and checking", 0, 1)
    dense_V = check.losses(dense, test_VT)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write.save(write.as_qwen2_moe(dense, layers), tokenizer, part)
    record = {
        "from": source.MODEL,
        "licence": source.LICENCE,
        "versions": source.versions(),
        "seed": seed,
        "carved_by_windows": list(ids_WT.shape),
        "sizes": vars(sizes),
        "held_out": check.compare(dense_V, check.losses(check.reload(part), test_VT)),
        "seconds": round(time.monotonic() - start),
    }
    (part / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (part / "README.md").write_text(card(record), encoding="utf-8")
    (part / HELD_OUT).write_text("".join(_lines(found)), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
    advance("writing and checking", 1, 1)


def _lines(found: dict[str, list[str]]) -> list[str]:
    """Held-out documents as `lynx-moe fidelity --data` reads them; kinds take turns, so that the first ones are of all
    kinds."""
    kinds = [
        [{"text": text[:TEXT_CHARACTERS], "group": kind} for text in documents if texts.is_held_out(text)]
        for kind, documents in found.items()
    ]
    return [json.dumps(each) + "\n" for turn in zip_longest(*kinds) for each in turn if each]
