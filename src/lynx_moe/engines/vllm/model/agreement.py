"""All workers of an engine, on whatever machine, are started alike: refused before weights load where they are not.

They tell each other by the store through which torch's processes have found each other. A collective would wait for
good for a worker that knows nothing of us; a key that nobody writes is given up after a while.
"""

import hashlib
import json
import socket
from collections.abc import Iterable
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lynx_moe.engines.shared.options import KEY
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.tell.relay import Place, here
from lynx_moe.policies import Policy

ABOUT = ("machine", "place", "instance")  # of the worker itself, so it may differ
LACKS = "lacks"
PATIENCE = timedelta(seconds=120)  # all of them have met a moment ago


def check(vllm_config: Any, options: Options, shadow: float) -> Place:
    """Where this worker is among the others. shadow: its share of shadow steps. Raises ValueError if one of them has
    another version, other options, files or shadow steps, or says nothing."""
    instance, parallel = str(vllm_config.instance_id), vllm_config.parallel_config
    launched = parallel.distributed_executor_backend == "external_launcher"  # its world may hold others than workers
    if launched or not dist.is_initialized() or dist.get_world_size() == 1:
        return Place(instance=instance)
    store, rank, size = dist.distributed_c10d._get_default_store(), dist.get_rank(), dist.get_world_size()
    mine = {
        **told(vllm_config.additional_config[KEY], options.policies),
        "the share of shadow steps": f"{shadow:g}",
        "place": here(),
        "instance": instance,
    }
    first = compare(store, rank, size, mine, PATIENCE)
    # with a server on every machine each of them tells its own engines only, as vLLM's own metrics do
    apart = parallel.data_parallel_hybrid_lb or parallel.data_parallel_external_lb
    near = apart or first["place"] == mine["place"]
    return Place(instance=first["instance"], store=store, rank=rank, size=1 if apart else size, near=near)


def told(given: Any, policies: Iterable[Policy]) -> dict[str, str]:
    """What must be the same everywhere, in words; and which machine says so, and what it lacks."""
    files = sorted({str(policy.calibration_file) for policy in policies if policy.calibration_file is not None})
    digests = {file: _digest(file) for file in files}
    missing = [reason for _, reason in digests.values() if reason]
    return {
        **({LACKS: "; ".join(missing)} if missing else {}),
        "machine": socket.gethostname(),
        "lynx-moe": metadata.version("lynx-moe"),
        "options": json.dumps(given, sort_keys=True, default=str),
        **{f"the content of {file}": digest for file, (digest, _) in digests.items()},
    }


def compare(store: Any, rank: int, size: int, mine: dict[str, str], patience: timedelta) -> dict[str, str]:
    """The first rank hears all others, and they hear the first: what that has said. Raises ValueError, naming both and
    what differs, or the one that lacks something: so that the first machine's log has the reason too."""
    theirs = mine
    store.set(f"{KEY}/{rank}", json.dumps(mine))
    if LACKS in mine:
        raise ValueError(f"rank {rank} of {size}: {mine[LACKS]}")
    for other in range(1, size) if rank == 0 else (0,):
        key = f"{KEY}/{other}"
        try:
            store.wait([key], patience)
        except RuntimeError:  # DistStoreError
            raise ValueError(
                f"rank {other} of {size} has not said within {patience.seconds} s how it was started; install lynx-moe "
                f"on its machine too, and start it with the same additional_config[{KEY!r}]"
            ) from None
        theirs = json.loads(store.get(key))
        if LACKS in theirs:
            raise ValueError(f"rank {other} of {size}: {theirs[LACKS]}")
        for name in mine.keys() | theirs.keys():
            if name not in ABOUT and mine.get(name) != theirs.get(name):
                here, there = (f"{one.get(name)} on {one['machine']}" for one in (mine, theirs))
                raise ValueError(f"ranks {rank} and {other} differ in {name}: {here}, {there}; start them alike")
    return mine if rank == 0 else theirs


def _digest(file: str) -> tuple[str, str]:
    """Of its content; and why there is none."""
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12], ""
    except OSError as error:
        return "", (
            f"calibration file {file} cannot be read on {socket.gethostname()} ({error.strerror}); it must lie under "
            "the same path on every machine"
        )
