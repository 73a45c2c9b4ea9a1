"""Which backbones read a text alike in one piece, in several, and packed into a row with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esckit.errors import ConfigError

PATH_MODE = "Set encoding.mode: path"


def check_packable(config: Mapping[str, Any], *, longest_path: int) -> None:
    """Refuse backbones whose hidden states in a packed row would differ from those of the prefix alone.

    Args:
        config: The backbone's configuration as plain data (``config.to_dict()``).
        longest_path: Tokens of the longest path.

    Raises:
        ConfigError: If tokens mix other than by full attention, if positions come from the row index, or if a path is
            not shorter than a sliding window. The hint names ``encoding.mode: path``.
    """
    name = config.get("model_type", "this backbone")
    layers = set(config.get("layer_types") or ())
    if foreign := layers - _ATTENTION:
        raise ConfigError(
            f"{name} has layers of type {', '.join(sorted(foreign))}", expected="attention layers only", hint=PATH_MODE
        )
    if name in _RECURRENT:
        raise ConfigError(f"{name} is recurrent", expected="attention layers only", hint=PATH_MODE)
    if name in _ROW_BIASED or config.get("alibi") or (config.get("attn_config") or {}).get("alibi"):
        raise ConfigError(f"{name} takes positions from the row index", expected="position ids", hint=PATH_MODE)
    window = config.get("sliding_window")
    slides = "sliding_attention" in layers or (not layers and config.get("use_sliding_window", True))
    if window and slides and longest_path >= window:
        raise ConfigError(
            f"a path of {longest_path} tokens and a sliding window of {window} in {name}",
            expected="paths shorter than the window",
            hint=f"{PATH_MODE}, or lower encoding.max_path_tokens",
        )


def only_attends(config: Mapping[str, Any]) -> bool:
    """Return whether a backbone's tokens mix by attention alone, so that a text can be read piece by piece."""
    return not set(config.get("layer_types") or ()) - _ATTENTION and config.get("model_type") not in _RECURRENT


_ATTENTION = frozenset({"full_attention", "sliding_attention"})
_RECURRENT = frozenset(
    {"mamba", "mamba2", "rwkv", "falcon_mamba", "recurrent_gemma", "jamba", "bamba", "zamba", "zamba2"}
)
_ROW_BIASED = frozenset({"bloom", "mpt"})
