"""What a frozen vision tower gives, kept on disk: a picture's features are computed once, not once an epoch.

A tower that is not trained gives the same for the same pixels, so the key is a hash of the pixels, of the
tower's weights and of the type it computes in; another tower or picture size only finds nothing. Pictures
must come back unchanged, which is why a recipe with `tower_cache` draws the crops of a product once. SQLite
holds the features as safetensors: it is in Python, one file, survives a kill, and one machine's processes can
share it.
"""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from moonshelf.errors import UserError
from moonshelf.model.modeling import MoonModel

_WAIT = 60.0  # seconds for another process that writes


class TowerCache:
    """Stands in for `MoonModel.look` once it is made. `hits` and `misses` count pictures."""

    def __init__(self, model: MoonModel, file: str | Path, dtype: torch.dtype) -> None:
        """Raises UserError if a part of the tower is trained, or if the file cannot be written."""
        tower = model.backbone.model.visual
        if any(parameter.requires_grad for parameter in tower.parameters()):
            raise UserError(
                "tower_cache: the vision tower is trained, so what it gives changes: freeze it "
                "(freeze: [backbone.model.visual]) or leave tower_cache away."
            )
        self.hits = self.misses = 0
        self._look = model.look
        self._tag = _tag(tower.state_dict(), dtype)
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            # The engine's reading thread does not look at pictures; one thread at a time uses this.
            self._db = sqlite3.connect(file, timeout=_WAIT, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")  # after a power cut a few are computed again
            self._db.execute("CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, value BLOB)")
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"tower_cache: {file} cannot be used: {error}.") from None
        model.look = self  # type: ignore[method-assign]

    def __deepcopy__(self, memo: Any) -> TowerCache:
        return self  # of a copy of the model too, whose tower is as frozen

    def __call__(self, patches: Tensor, grid: Tensor) -> Any:
        """As `MoonModel.look`: (P, patch) float32 and (n, 3) int64 to the features of n pictures."""
        parts = patches.split(grid.prod(-1).tolist())
        keys = [_key(self._tag, part, row) for part, row in zip(parts, grid, strict=True)]
        wanted = list(dict.fromkeys(keys))
        marks = ",".join("?" * len(wanted))
        found = dict(self._db.execute(f"SELECT key, value FROM features WHERE key IN ({marks})", wanted))
        features = {key: _read(value, patches.device) for key, value in found.items()}
        missing = [key for key in wanted if key not in features]
        self.hits, self.misses = self.hits + len(found), self.misses + len(missing)
        if missing:
            places = [keys.index(key) for key in missing]
            with torch.no_grad():
                seen = self._look(torch.cat([parts[p] for p in places]), grid[places])
            fresh = {key: _of(seen, n) for n, key in enumerate(missing)}
            self._db.execute("BEGIN")
            rows = [(key, save(each)) for key, each in fresh.items()]
            self._db.executemany("INSERT OR IGNORE INTO features VALUES (?, ?)", rows)
            self._db.execute("COMMIT")
            features |= fresh
        chosen = [features[key] for key in keys]
        given = SimpleNamespace(pooler_output=[one["pooled"] for one in chosen])
        if deep := len(chosen[0]) - 1:  # Qwen3-VL's; Qwen2.5-VL has none
            given.deepstack_features = [[one[f"deep {n}"] for one in chosen] for n in range(deep)]
        return given


def _of(seen: Any, place: int) -> dict[str, Tensor]:
    """One picture of what the tower gave: the features, and those for the decoder's first layers."""
    deep = {f"deep {n}": layer[place] for n, layer in enumerate(getattr(seen, "deepstack_features", ()))}
    return {"pooled": seen.pooler_output[place], **deep}


def _read(value: bytes, device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in load(value).items()}


def _tag(state: dict[str, Tensor], dtype: torch.dtype) -> bytes:
    digest = hashlib.blake2b(f"{dtype} {torch.__version__}".encode(), digest_size=16)
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return digest.digest()


def _key(tag: bytes, patches: Tensor, grid: Tensor) -> bytes:
    digest = hashlib.blake2b(tag, digest_size=16)
    digest.update(_bytes(grid))
    digest.update(_bytes(patches))
    return digest.digest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
