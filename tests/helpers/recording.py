"""What a CUDA graph does, without a GPU: every tensor operation and kernel launch is noted once, with the memory that
it reads and writes, and done again later on what that memory holds by then. Python runs once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lynx_moe.kernels.gpu import launch

WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Recording(TorchDispatchMode):
    """`replay()` does everything again."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], Any]] = []
        self.launches = 0

    def replay(self) -> None:
        for step in self.steps:
            step()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in WAITS, f"{func}: a graph cannot wait for the device"
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if not func.is_view:
            self.steps.append(lambda: self._again(func, args, kwargs, made))
        return made

    def _again(self, func: Any, args: Any, kwargs: Any, made: Any) -> None:
        if func._schema.name.startswith("aten::empty") or func._schema.name == "aten::new_empty":
            return  # the memory stays where it is
        for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
            if old is not new and old.data_ptr() != new.data_ptr():
                old.copy_(new)

    def launched(self, kernel: Any) -> Any:
        recording = self

        class Noted:
            def __getitem__(self, grid: Any) -> Callable[..., None]:
                def run(*args: Any, **constants: Any) -> None:
                    recording.launches += 1
                    recording.steps.append(lambda: kernel[grid](*args, **constants))
                    with torch.utils._python_dispatch._disable_current_modes():
                        kernel[grid](*args, **constants)

                return run

        return Noted()


@contextmanager
def recorded() -> Iterator[Recording]:
    """Notes what happens in the block."""
    recording = Recording()
    kernels = {name: recording.launched(getattr(launch, name)) for name in ("keep_kernel", "reroute_kernel")}
    with patch.multiple(launch, **kernels), recording:
        yield recording
