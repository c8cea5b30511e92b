"""The testbed as tasks of lm-evaluation-harness: `lm_eval --include_path "$(lynx-moe testbed tasks-path)"`.

One YAML file per entry of `tasks.TASKS` on top of `_exercise_yaml`, the group `lynx_testbed` over them, and the group
`lynx_testbed_text` of held-out text. Their data are made by `data.py`; nothing is downloaded.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
"""What lm-evaluation-harness takes as --include_path."""
