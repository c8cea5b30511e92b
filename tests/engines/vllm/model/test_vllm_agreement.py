"""Workers that were not started alike are refused, on torch's own store; each side says what differs."""

import socket
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lynx_moe.engines.vllm.model import agreement
from lynx_moe.policies import make_policy

SOON = timedelta(seconds=1)


def compared(*said: dict[str, str]) -> list[str]:
    """What each rank has to say against the others; None in place of one that says nothing."""
    store, found = dist.HashStore(), [""] * len(said)

    def one(rank: int) -> None:
        try:
            agreement.compare(store, rank, len(said), said[rank], SOON)
        except ValueError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(said)) if said[rank]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def told(machine: str, policy: str = "priced", **more: Any) -> dict[str, str]:
    return {**agreement.told({"policy": policy, **more}, [make_policy(policy)]), "machine": machine}


def test_who_was_started_alike_agrees_whatever_the_machine() -> None:
    assert compared(told("a"), told("a"), told("b")) == ["", "", ""]


def test_other_options_are_named_with_both_machines() -> None:
    first, same, other = compared(told("a"), told("a"), told("b", policy="lynx"))
    assert same == ""
    says = 'differ in options: {"policy": "priced"} on a, {"policy": "lynx"} on b; start them alike'
    assert first == f"ranks 0 and 2 {says}"
    assert (
        other == 'ranks 2 and 0 differ in options: {"policy": "lynx"} on b, {"policy": "priced"} on a; start them alike'
    )


def test_another_version_is_named() -> None:
    old = {**told("b"), "lynx-moe": "0.0.1"}
    assert "ranks 1 and 0 differ in lynx-moe: 0.0.1 on b" in compared(told("a"), old)[1]


def test_one_that_says_nothing_is_given_up_by_name() -> None:
    first, _, second = compared(told("a"), {}, told("a"))
    assert first.startswith(
        "rank 1 of 3 has not said within 1 s how it was started; install lynx-moe on its machine too"
    )
    assert second == ""


def test_files_must_be_there_and_alike(tmp_path: Path) -> None:
    file = tmp_path / "calibration.safetensors"
    policy = make_policy(f"reap:share=0.5,data={file}")
    lacking, said = agreement.told({}, [policy]), []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        said.append({**agreement.told({}, [policy]), "machine": content.decode()})
    assert f"differ in the content of {file}: " in compared(*said)[0]
    first, _, third = compared(said[0], said[0], lacking)
    here = f"rank 2 of 3: calibration file {file} cannot be read on {socket.gethostname()} (No such file or directory)"
    assert first == third == f"{here}; it must lie under the same path on every machine"
    alone, *rest = compared(lacking, said[0])
    assert [alone, *rest] == [first.replace("rank 2 of 3", "rank 0 of 2")] * 2
