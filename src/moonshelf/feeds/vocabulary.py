"""The words of feeds, `vocabulary.toml` as Python has it: what a shop calls its columns is data, not code."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WORDS: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def by_word(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Word -> the group that it is in."""
    return {word: group for group, words in groups.items() for word in words}
