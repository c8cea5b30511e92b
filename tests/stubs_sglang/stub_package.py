"""What the two stubs beside this file are made of: a package of which every name and every module below it is there.

For tests alone. A name has every attribute, each its own name, and raises when it is called.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any


class _Anything(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return name

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{cls.__name__} is a stub for tests: nothing that runs here may call it")


class _Stub(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        whole = f"{self.__name__}.{name}"
        return sys.modules.get(whole) or _Anything(whole, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, package: str) -> None:
        self.below = f"{package}."

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.startswith(self.below):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        parent, _, name = module.__name__.rpartition(".")
        setattr(sys.modules[parent], name, module)


def become(package: str) -> None:
    """The package that is being imported under this name has every name from now on."""
    sys.modules[package].__class__ = _Stub
    sys.meta_path.insert(0, _Finder(package))
