"""vLLM's own benchmark client, in a process of its own, against one server."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLIENT = "lynx_moe.engines.vllm.launch.command"  # is `vllm`, also where the distribution has another name
PERCENTILES = (50, 90, 99)
FIGURES = ("ttft", "tpot", "itl")


@dataclass(frozen=True)
class Arrivals:
    """What the client reads: its data set's name and file, requests and their rate per second. block: tokens of a hash
    id in a timed trace, and `stretch` what its seconds are multiplied by; None: times are drawn (Poisson)."""

    dataset: str
    path: Path
    requests: int
    rate: float
    block: int = 0
    stretch: float | None = None

    @property
    def flags(self) -> list[str]:
        """The client's own flags."""
        flags = ["--dataset-name", self.dataset, "--dataset-path", str(self.path), "--num-prompts", str(self.requests)]
        if self.stretch is None:
            return [*flags, "--request-rate", str(self.rate), "--ignore-eos"]
        return [
            *flags,
            "--timed-trace-chunk-hash-size",
            str(self.block),
            "--timed-trace-sec-multiplier",
            repr(self.stretch),
        ]


@dataclass(frozen=True)
class Target:
    """url: the server's base; model: the name that requests give; tokenizer: its folder or hub name; folder: where the
    client writes; key: the server's, if it has one."""

    url: str
    model: str
    tokenizer: str
    folder: Path
    key: str | None = None


def send(target: Target, arrivals: Arrivals, seed: int, wish: str | None = None) -> dict[str, Any]:
    """What the client measured: its own percentiles in ms, and each request's. Prompts and times depend on the seed
    alone, so they are the same for every policy. Answers are sampled at temperature 1, and have the length that the
    trace says. wish: what every request asks of lynx-moe.

    Raises ValueError with the client's last words if it failed, or some requests did.
    """
    result, log = target.folder / "client.json", target.folder / "client.log"
    target.folder.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)
    line = [sys.executable, "-m", CLIENT, "bench", "serve", "--backend", "openai", "--base-url", target.url]
    line += ["--endpoint", "/v1/completions", "--model", target.model, "--tokenizer", target.tokenizer]
    line += [*arrivals.flags, "--seed", str(seed)]
    line += ["--temperature", "1", "--disable-tqdm", "--percentile-metrics", ",".join(FIGURES)]
    line += ["--metric-percentiles", ",".join(map(str, PERCENTILES)), "--save-result", "--save-detailed"]
    line += ["--result-dir", str(target.folder), "--result-filename", result.name]
    if wish is not None:
        line += ["--extra-body", json.dumps({"vllm_xargs": {"lynx_moe": wish}})]
    env = {**os.environ, "PYTHONHASHSEED": "0"}  # the client draws a block's tokens by the hash of its name
    if target.key is not None:
        env["OPENAI_API_KEY"] = target.key  # the client's name for it
    with log.open("w", encoding="utf-8") as out:
        code = subprocess.run(line, stdout=out, stderr=subprocess.STDOUT, env=env, check=False).returncode
    if code or not result.is_file():
        raise ValueError(f"vLLM's benchmark client ended with code {code}: {_last(log)}")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if found["completed"] < arrivals.requests:
        errors = sorted({" ".join(str(error).split())[-200:] for error in found.get("errors", ()) if error})
        raise ValueError(
            f"{found['completed']} of {arrivals.requests} requests came to an end: {'; '.join(errors) or _last(log)}"
        )
    return found


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """What a record keeps: percentiles by their names, each request's TTFT and TPOT in ms, and the whole's numbers. The
    TPOT of an answer of one token is None."""
    requests = zip(found["ttfts"], found["itls"], found["output_lens"], strict=True)
    each = [(1e3 * ttft, 1e3 * sum(itls) / (tokens - 1) if tokens > 1 else None) for ttft, itls, tokens in requests]
    return {
        **{
            f"{name}_ms": {str(p): round(found[f"p{p}_{name}_ms"], 3) for p in PERCENTILES}
            | {"mean": round(found[f"mean_{name}_ms"], 3)}
            for name in FIGURES
        },
        "requests": [[round(ttft, 2), None if tpot is None else round(tpot, 3)] for ttft, tpot in each],
        "seconds": round(found["duration"], 3),
        "prompt_tokens": found["total_input_tokens"],
        "answer_tokens": found["total_output_tokens"],
    }


def _last(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
