"""Small mixture-of-experts models, trained here, that behave like large ones where routing is concerned.

Everything starts from three modules: `tasks` (prompts with exact answers), `families` (one row per architecture) and
`train` (the recipe). A trained model is a plain Hugging Face folder; `path` finds it.
"""

from lynx_moe.testbed.locate import path

__all__ = ["path"]
