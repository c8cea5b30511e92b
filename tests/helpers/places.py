"""Where things lie in a clone."""

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]
MODELS = ROOT / "models"
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
