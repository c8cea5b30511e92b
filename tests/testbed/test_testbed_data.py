"""The tokenizer and the packed rows."""

from dataclasses import replace
from statistics import median

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lynx_moe.testbed import tasks
from lynx_moe.testbed.model.families import FAMILIES
from lynx_moe.testbed.training.data import Packer, encode_item
from lynx_moe.testbed.training.tokenizer import VOCAB_SIZE

FAMILY = FAMILIES["qwen3-moe"]


def test_tokenizer_gives_back_any_text(tokenizer: PreTrainedTokenizerFast) -> None:
    @given(st.text())
    @settings(max_examples=300)
    def round_trip(text: str) -> None:
        kept = text.encode(errors="ignore").decode()
        assert tokenizer.decode(tokenizer(kept)["input_ids"]) == "<bos>" + kept

    round_trip()
    assert len(tokenizer) == VOCAB_SIZE


def test_digits_are_tokens_of_their_own(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("x=4711 08") == ["x", "=", "4", "7", "1", "1", "Ġ0", "8"]


def test_prompt_and_answer_split_cleanly(tokenizer: PreTrainedTokenizerFast) -> None:
    for task in tasks.TASKS:
        for item in tasks.test_items(task, 20):
            ids, given_tokens = encode_item(item, tokenizer)
            assert ids == [*tokenizer(item.prompt + item.answer)["input_ids"], 2]
            assert tokenizer.decode(ids[:given_tokens]) == "<bos>" + item.prompt


def test_answers_need_many_decode_steps(tokenizer: PreTrainedTokenizerFast) -> None:
    found = []
    for task in tasks.TASKS:
        lengths = [len(ids) - given for ids, given in (encode_item(i, tokenizer) for i in tasks.test_items(task, 100))]
        assert median(lengths) >= 5
        found += lengths
    assert median(found) >= 8


def test_rows_are_full_positions_restart_and_prompts_are_not_learnt(
    tokenizer: PreTrainedTokenizerFast, texts: list[list[list[int]]]
) -> None:
    packer = Packer(tokenizer, texts, replace(FAMILY, batch_rows=5, row_length=97, seed=2))
    batch = packer.batch(3)
    assert batch.ids_BL.shape == (5, 97)
    assert not (batch.ids_BL == tokenizer.pad_token_id).any()
    starts = batch.ids_BL == tokenizer.bos_token_id
    assert torch.equal(batch.positions_BL == 0, starts)
    assert torch.equal(batch.positions_BL.diff() == 1, ~starts[:, 1:])
    assert not batch.learn_BL[starts].any()
    assert batch.learn_BL[batch.ids_BL == tokenizer.eos_token_id].all()
    arrows = batch.ids_BL == tokenizer.convert_tokens_to_ids("Ġ->")
    assert arrows.any()
    assert not batch.learn_BL[arrows].any()
    assert all(torch.equal(a, b) for a, b in zip(vars(batch).values(), vars(packer.batch(3)).values(), strict=True))
    assert not torch.equal(batch.ids_BL, packer.batch(4).ids_BL)


def test_late_rows_draw_other_shares(tokenizer: PreTrainedTokenizerFast, texts: list[list[list[int]]]) -> None:
    packer = Packer(tokenizer, texts, replace(FAMILY, batch_rows=160, num_tokens=160 * 192 * 100))
    counts = []
    for steps in (range(46, 55), range(55, 64)):
        text = " ".join(row for step in steps for row in tokenizer.batch_decode(packer.batch(step).ids_BL))
        counts.append({task: text.count(f"<bos>{task}") for task in tasks.TASKS})
    early, late = counts
    assert early["caesar"] > 1.3 * late["caesar"]
    assert late["translate"] > 1.3 * early["translate"]


def test_workers_share_out_every_row_once(tokenizer: PreTrainedTokenizerFast, texts: list[list[list[int]]]) -> None:
    batch = Packer(tokenizer, texts, replace(FAMILY, batch_rows=5, row_length=50, seed=0)).batch(0)
    shares = [batch.rows(worker, 2).ids_BL for worker in range(2)]
    assert sorted(torch.cat(shares).tolist()) == sorted(batch.ids_BL.tolist())
