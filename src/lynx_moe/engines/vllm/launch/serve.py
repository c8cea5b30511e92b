"""`python -m lynx_moe.engines.vllm.launch.serve OURS ...` is `vllm serve ...` with OURS, a JSON object of `Options`, in
its configuration.

vLLM's own parser reads the command line, in every spelling that it knows. What it understood is checked, and what
cannot work is said in one line before anything is loaded; the plugin checks the rest, by the model that vLLM builds,
before weights load.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from types import SimpleNamespace
from typing import Any, NoReturn

from lynx_moe.calibration import artifact
from lynx_moe.engines.shared import config
from lynx_moe.engines.shared.options import DRAFT, KEY
from lynx_moe.engines.vllm.launch import acting, address, command, ranks
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.policies import DEFAULT, Policy

logger = logging.getLogger("vllm.lynx_moe")
ALLOWED = "VLLM_PLUGINS"
ENDPOINTS = "vllm.endpoint_plugins"
BACK_OFF = 0.01  # nats: perplexity up to 1 % higher
LOADED = tuple(f"vllm.{kind}_plugins" for kind in ("general", "io_processor", "platform", "stat_logger"))


def main() -> None:
    """What the command line asks for, or one line and exit code 2."""
    ours, *args = sys.argv[1:]
    sys.argv = ["vllm", "serve", *args]
    understood = False

    def before(given: Any) -> None:
        nonlocal understood
        prepare(given, json.loads(ours))
        understood = True

    try:
        if "--omni" in args:
            raise ValueError("--omni hands the line to vllm-omni, which no policy reaches; use `vllm serve` for it")
        os.environ[ALLOWED] = allowed_plugins(os.environ.get(ALLOWED))
        with hooked(before):
            command.main()
    except Exception as error:
        if understood:  # it is vLLM's from here on
            raise
        refuse(f"vLLM cannot be imported: {error}" if isinstance(error, ImportError) else error)


def refuse(error: object) -> NoReturn:
    """Says why in one line, however many vLLM has for it, and ends."""
    print(f"lynx-moe: error: {' '.join(str(error).split()) or repr(error)}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def hooked(before: Callable[[Any], None]) -> Iterator[None]:
    """Here `vllm serve` hands `before` what its parser understood, which it may change."""
    command.name_vllm()
    from vllm.entrypoints.cli.serve import ServeSubcommand

    def validate(self: Any, args: Any) -> None:
        own(self, args)
        before(args)

    own, ServeSubcommand.validate = ServeSubcommand.validate, validate
    try:
        yield
    finally:
        ServeSubcommand.validate = own


def prepare(args: Any, asked: Mapping[str, Any]) -> None:
    """Puts what the command line asks for into what vLLM's parser understood. The rest is as the additional config
    says, or the default.

    Raises ValueError if no model is named or it has no experts, the policy does not fit it, the additional config is no
    JSON object or has bad options of ours, a config file is named in a way that vLLM does not read, or nobody could
    listen where the server is to.
    """
    if args.config is not None:
        raise ValueError(f"vLLM reads a config file only as `--config FILE`, in full; {args.config} would be ignored")
    asked = dict(asked)
    findings = asked.pop("doctor", None)
    args.additional_config = with_ours(args.additional_config, asked, ranks.default(args.data_parallel_size))
    if findings is not None:
        _as_found(args, findings)
    options = Options.of(SimpleNamespace(additional_config=args.additional_config))
    assert options is not None  # with_ours has named one
    for made in options.policies:
        artifact.require(made)
        check_model(args, made)
    address.check(args)


def with_ours(given: Any, asked: Mapping[str, Any], default: str = DEFAULT) -> dict[str, Any]:
    """The user's additional config with what is asked for in it, and a policy: where none is named, `default`, which
    backs off from BACK_OFF nats unless something else moves it. Raises ValueError if it is no JSON object, or says
    otherwise."""
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise ValueError(f"--additional-config {given!r} must be a JSON object, such as '{{\"key\": 1}}'")
    options = given.get(KEY, {})
    if not isinstance(options, dict):
        raise ValueError(f'--additional-config: {KEY}={options!r} must be a JSON object, such as {{"log_every": 5}}')
    ours = {**asked, **options}
    if ours.get("tuned") is None and "policy" not in ours:
        moved = any(ours.get(key) is not None for key in ("max_kl", "guard")) or ours.get("verify") == DRAFT
        ours = {"policy": default, **({} if moved or ours.get("shadow") == 0 else {"back_off_kl": BACK_OFF}), **ours}
    for key, value in asked.items():
        if key in options and options[key] != value:
            flag = f"--{key.replace('_', '-')}"
            raise ValueError(f"--additional-config names {key} {ours[key]!r}, {flag} {value!r}; leave one of them out")
    return {**given, KEY: ours}


def _as_found(args: Any, findings: str) -> None:
    """Puts the batch sizes in which the policy acts, by a doctor's findings, into the additional config."""
    ours = args.additional_config[KEY]
    for other in ("act_from", "act_to", "tuned"):
        if other in ours:
            raise ValueError(f"doctor says at which batch sizes a policy acts, and so does {other}; leave out either")
    found, verdict = acting.read(findings, ours["policy"], args.model_tag or args.model)
    ours |= found
    logger.info("%s: doctor: %s %s", KEY, ours["policy"], verdict)


def check_model(args: Any, policy: Policy) -> None:
    """Raises ValueError if no model is named, a local folder is none, the model is certainly dense, or the policy does
    not fit it. What lies elsewhere is vLLM's to find."""
    from vllm import EngineArgs

    model = args.model_tag or args.model
    if args.model_tag is None and model == EngineArgs.model:
        raise ValueError("no model is named; write `lynx-moe serve MODEL`, or `model: MODEL` in the file of --config")
    folder = config.folder_of(args.hf_config_path or model)
    if folder is None or folder.is_file():
        return
    if (folder / "config.json").exists():
        config.check(config.overridden(config.read(folder), args.hf_overrides or {}), policy, model)
    elif args.config_format == "auto" and not any(any(folder.glob(each)) for each in ("params.json", "*.gguf")):
        raise ValueError(f"{model} holds no config.json (nor params.json); give a model's folder, or a hub name")


def allowed_plugins(given: str | None) -> str:
    """VLLM_PLUGINS such that vLLM also loads our endpoint, which it does by name only. Not given means all plug-ins but
    endpoints, so these are listed. Raises ValueError if what is given leaves us out, or if the list would let in an
    endpoint that nobody asked for."""
    if given is not None:
        if KEY not in given.split(","):
            raise ValueError(f"{ALLOWED}={given} leaves {KEY} out; add it, or unset the variable")
        return given
    names = {point.name for group in LOADED for point in metadata.entry_points(group=group)} | {KEY}
    others = sorted({point.name for point in metadata.entry_points(group=ENDPOINTS)} & names - {KEY})
    if others:
        raise ValueError(f"set {ALLOWED} yourself: the plug-ins {', '.join(others)} would open endpoints of their own")
    return ",".join(sorted(names))


if __name__ == "__main__":
    main()
