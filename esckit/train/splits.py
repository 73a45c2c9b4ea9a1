"""Which dialogues are held out while training: by a hash of their id, so that every command holds out the same ones."""

from __future__ import annotations

import hashlib


def dev_position(seed: int, dialogue_id: str) -> float:
    """Return u in [0, 1]: the first 16 hex digits of SHA-256 of ``{seed}:dev:{id}``, over 16^16."""
    digest = hashlib.sha256(f"{seed}:dev:{dialogue_id}".encode()).hexdigest()
    return int(digest[:16], 16) / 16**16


def is_dev(seed: int, dialogue_id: str, share: float) -> bool:
    """Return whether a dialogue, with all its contexts and candidates, is held out."""
    return dev_position(seed, dialogue_id) < share
