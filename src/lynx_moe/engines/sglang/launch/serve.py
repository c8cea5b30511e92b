"""`python -m lynx_moe.engines.sglang.launch.serve OURS ...` is `sglang serve ...` with OURS, `Options` as JSON.

SGLang's own parser reads the command line. What cannot work is said in one line, with exit code 2: before anything is
loaded, or by the scheduler's process when it has built the model.
"""

import json
import os
import signal
import sys
from typing import Any, NoReturn

from lynx_moe.engines.sglang.launch import versions
from lynx_moe.engines.sglang.launch.options import VARIABLE, Options
from lynx_moe.engines.shared import config, refusals
from lynx_moe.policies import DEFAULT

HELP = ("-h", "--help")


def main() -> None:
    """What the command line asks for, or one line and exit code 2."""
    ours, *args = sys.argv[1:]
    if not set(args) & set(HELP):
        try:
            prepare(json.loads(ours))
        except ValueError as error:
            refuse(error)
    try:
        serve(args)
    except refusals.Refusal as error:
        refuse(error)
    except Exception:
        reason = refusals.heard()
        if reason is None:
            raise
        refuse(reason)


def prepare(asked: dict[str, Any]) -> None:
    """Hands on what is asked for to every process of the engine, beside what the variable says already. Raises
    ValueError for what cannot be, or is said otherwise there."""
    reason = versions.refusal()
    if reason is not None:
        raise ValueError(reason)
    given = Options.read(os.environ.get(VARIABLE, "{}"))
    for key, value in asked.items():
        if given.get(key, value) != value:
            raise ValueError(f"{VARIABLE} names {key} {given[key]!r}, --{key} {value!r}; leave one of them out")
    text = json.dumps({"policy": DEFAULT, **asked, **given})
    Options.of(text)
    os.environ[VARIABLE] = text


def serve(args: list[str]) -> None:
    """`sglang serve`, with /metrics on it, and with it the routes of the policy."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args

    line = ["--model-path", *args] if args and not args[0].startswith("-") else args
    server_args = prepare_server_args(["--enable-metrics", *line])
    check_model(server_args)
    server_args.custom_sigquit_handler = child_failed
    run_server(server_args)


def check_model(server_args: Any) -> None:
    """Raises Refusal if a local folder is none, or its model is certainly dense, or the policy does not fit it."""
    options = Options.asked()
    assert options is not None  # prepare has said one
    with refusals.refusing():
        folder = config.folder_of(server_args.model_path)
        if folder is not None and (folder / "config.json").exists():
            overrides = json.loads(server_args.json_model_override_args)
            found = config.overridden(config.read(folder), overrides)
            config.check(found, options.make_policy(), server_args.model_path)


def child_failed(*_: Any) -> None:
    """A process of SGLang's has failed: all end, and where it was a refusal of ours, its reason is the last line."""
    from sglang.srt.utils import kill_process_tree

    reason = refusals.heard()
    kill_process_tree(os.getpid(), include_parent=False)
    if reason is not None:
        refuse(reason)
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(error: object) -> NoReturn:
    """Says why in one line, and ends."""
    print(f"lynx-moe: error: {' '.join(str(error).split()) or repr(error)}", file=sys.stderr, flush=True)
    os._exit(2)


if __name__ == "__main__":
    main()
