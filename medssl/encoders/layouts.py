"""Brings files of DINOv2 and DINOv3 from transformers, and tables of positions with a class row, to timm's layout."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

LAYER = re.compile(r"^(?:.*\.)?layer\.(\d+)\.(.+)$")
ATTENTION = re.compile(r"^attention\.(?:attention\.)?(query|key|value|[qkv]_proj)\.(weight|bias)$")
RENAMED = (  # parts of the names in transformers, and in timm
    (r"^attention\.(?:output\.dense|o_proj)\.", "attn.proj."),
    (r"^layer_scale([12])\.lambda1$", r"ls\1.gamma"),
    (r"^mlp\.up_proj\.", "mlp.fc1."),
    (r"^mlp\.down_proj\.", "mlp.fc2."),
)
OUTER = (
    (r"^(?:.*\.)?embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^(?:.*\.)?embeddings\.register_tokens$", "reg_token"),
    (r"^(?:.*\.)?embeddings\.position_embeddings$", "pos_embed"),
    (r"^(?:.*\.)?embeddings\.patch_embeddings\.(?:projection\.)?(weight|bias)$", r"patch_embed.proj.\1"),
    (r"^(?:.*\.)?(?:layernorm|norm)\.(weight|bias)$", r"norm.\1"),
)
MARK = re.compile(r"^(?:.*\.)?layer\.0\.attention\.(?:attention\.)?(?:query|q_proj)\.weight$")


@dataclass(frozen=True)
class Translated:
    """Tensors of a file by the names of timm.

    Attributes:
        tensors: Tensors by their new names.
        origins: Keys of the file that each of them comes from.
        changed: New names whose values are not those of one tensor of the file.
    """

    tensors: dict[str, Tensor]
    origins: dict[str, tuple[str, ...]]
    changed: frozenset[str]


def translated(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Translated:
    """Renames and joins the tensors of a file so that their layout is that of a module.

    Files of other layouts stay as they are. Of transformers' layout, queries, keys and values become one matrix; a bias
    that only some of them have is 0 for the others. A table of positions with a row for the class token, for a module
    whose table has none, is split: the row is added to the class token, which gives the same sum.

    Args:
        source: Tensors of the file.
        target: Tensors of the module.
    """
    origins: dict[str, tuple[str, ...]] = {key: (key,) for key in source}
    result = Translated(dict(source), origins, frozenset())
    if any(map(MARK.match, source)) and any(key.endswith("attn.qkv.weight") for key in target):
        result = _from_transformers(source)
    return _without_class_row(result, target)


def _from_transformers(source: Mapping[str, Tensor]) -> Translated:
    tensors: dict[str, Tensor] = {}
    origins: dict[str, tuple[str, ...]] = {}
    parts: dict[str, dict[str, str]] = defaultdict(dict)  # weight or bias of a block: its q, k and v
    for key, value in source.items():
        layer = LAYER.match(key)
        inner = ATTENTION.match(layer[2]) if layer else None
        if layer and inner:
            parts[f"blocks.{layer[1]}.attn.qkv.{inner[2]}"][inner[1][0]] = key
            continue
        name = f"blocks.{layer[1]}.{_renamed(layer[2], RENAMED)}" if layer else _renamed(key, OUTER)
        if value.numel() == 0:  # register tokens of a network without them
            continue
        tensors[name] = value[None] if name == "mask_token" and value.ndim == 2 else value
        origins[name] = (key,)
    for name, keys in parts.items():
        like = source[next(iter(keys.values()))]
        tensors[name] = torch.cat([source[keys[part]] if part in keys else torch.zeros_like(like) for part in "qkv"])
        origins[name] = tuple(keys.values())
    return Translated(tensors, origins, frozenset(parts))


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


def _without_class_row(found: Translated, target: Mapping[str, Tensor]) -> Translated:
    """Adds the first row of a table to the class token where the module's table has rows of patches alone."""
    table_key, token_key = (
        next((key for key in found.tensors if key.split(".")[-1] == name), "") for name in ("pos_embed", "cls_token")
    )
    wanted = next((value for key, value in target.items() if key.split(".")[-1] == "pos_embed"), None)
    if not table_key or not token_key or wanted is None or wanted.ndim != 3:
        return found
    table, token = found.tensors[table_key], found.tensors[token_key]
    rows = table.shape[1] if table.ndim == 3 else 0
    if rows < 2 or _is_square(rows) or not _is_square(rows - 1) or not _is_square(wanted.shape[1]):
        return found
    tensors = found.tensors | {table_key: table[:, 1:], token_key: token + table[:, :1]}
    origins = found.origins | {token_key: (*found.origins[token_key], *found.origins[table_key])}
    return Translated(tensors, origins, found.changed | {table_key, token_key})


def _is_square(number: int) -> bool:
    return isqrt(number) ** 2 == number
