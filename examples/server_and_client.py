"""A server under a policy, and requests that ask for more or less: `python examples/server_and_client.py [URL]`.

Without a URL it starts `lynx-moe serve` on a small model, and stops it at the end.
"""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from openai import BadRequestError, OpenAI

MODEL = str(Path(__file__).parents[1] / "models/qwen3-moe")


@contextmanager
def server(port: int = 8123) -> Iterator[str]:
    command = [sys.executable, "-m", "lynx_moe.cli", "serve", MODEL, "--port", str(port), "--host", "127.0.0.1"]
    with subprocess.Popen([*command, "--enforce-eager", "--max-model-len", "512"]) as process:
        try:
            while not answers(f"http://127.0.0.1:{port}/health"):
                if process.poll() is not None:
                    sys.exit("the server ended; its last lines say why")
                time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=2).status == 200)
    except OSError:
        return False


def ask(url: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id

    def answer(wish: str | None) -> str:
        wishes = {} if wish is None else {"vllm_xargs": {"lynx_moe": wish}}
        prompt = "sort: 44 20 17 60 ->"
        done = client.completions.create(model=model, prompt=prompt, max_tokens=16, temperature=0, extra_body=wishes)
        return done.choices[0].text

    wishes = [None, "exact", "fast", "oea:k0=3"] * 4  # they share batches, and each row follows its own wish
    with ThreadPoolExecutor(16) as pool:
        for wish, text in list(zip(wishes, pool.map(answer, wishes), strict=True))[:4]:
            print(f"{wish or '(the server decides)'}: {text}")
    try:
        answer("oea:k0=99")
    except BadRequestError as error:  # refused before the engine sees it
        print(f"oea:k0=99: {error.status_code} {error.message}")


if __name__ == "__main__":
    if sys.argv[1:]:
        ask(sys.argv[1])
    else:
        with server() as url:
            ask(url)
