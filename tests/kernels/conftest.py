"""The kernels' cases are the policies'. Under TRITON_INTERPRET=1, language patches once instead of at every call."""

import inspect
import os
from types import SimpleNamespace

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, set()

    def patch_once(function):
        """Half of an interpreted kernel's time went into patching triton.language anew (Triton 3.9)."""
        modules = {v for v in function.__globals__.values() if inspect.ismodule(v) and "triton" in v.__name__}
        if not modules <= patched:
            patched.update(modules)
            patch(function)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = patch_once
