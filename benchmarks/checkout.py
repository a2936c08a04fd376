"""Makes `research/` of this checkout importable, which is not installed. Imported before it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
