"""A model's loss in vLLM, in a process of its own."""

from collections.abc import Sequence
from pathlib import Path

from lynx_moe.lab.shared.engine import in_own_process, open_engine


def losses(folder: Path, texts: Sequence[str], num_tokens: int) -> list[tuple[list[int], float]]:
    """Of each text's first tokens: their ids, and the mean negative log-likelihood of all but the first, in nats."""
    return in_own_process(_losses, folder, texts, num_tokens)


def _losses(folder: Path, texts: Sequence[str], num_tokens: int) -> list[tuple[list[int], float]]:
    from vllm import SamplingParams

    llm = open_engine(folder, None, dtype="bfloat16", max_model_len=512, max_num_seqs=4, enforce_eager=True)
    tokenizer = llm.get_tokenizer()
    prompts = [tokenizer(text)["input_ids"][:num_tokens] for text in texts]
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    found = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    return [(ids, _mean(ids, out.prompt_logprobs)) for ids, out in zip(prompts, found, strict=True)]


def _mean(ids: list[int], by_place: list) -> float:
    values = [-place[token].logprob for token, place in zip(ids[1:], by_place[1:], strict=True)]
    return sum(values) / len(values)
