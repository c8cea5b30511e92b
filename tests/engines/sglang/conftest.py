"""SGLang in this process, where there is one. What needs it says so by `needs_sglang`."""

import sglang_here

if sglang_here.HAS_SGLANG:
    sglang_here.prepare()
