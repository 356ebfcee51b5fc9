"""Refuses weights that were trained in another network: names the tensors that make the difference, and what to set."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medssl.encoders.adapt import is_position_table
from medssl.encoders.base import Encoder
from medssl.types import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from medssl.encoders.weights import Report

INDEX = ("num_batches_tracked", "relative_position_index", "attn_mask", "relative_coords_table")  # no weights
BLOCK = re.compile(r"(\d+)\.(?=[^.]+\.)")  # a numbered part of a network that has parts itself
ENOUGH = 0.9  # share of the keys that a file must fill where nothing else is asked for
SIMILAR = 0.5  # share from which on a file is of the same kind of network, and differences are named
HARMLESS = re.compile(r"^(mask_token|decoder\w*)$")  # learned tokens at the root that an encoder without them can spare

KINDS = {  # tensors that change what a network computes, by their name behind the prefix of the network
    "LayerScale": r"(^|\.)(ls\d?\.gamma|gamma(_?\d)?|layer_?scale\w*)(\.\w+)?$",
    "a class token": r"(^|\.)(cls_token|class_token|class_embedding)$",
    "register tokens": r"(^|\.)(reg_token|register_tokens?|storage_tokens)$",
    "a distillation token": r"(^|\.)dist_token$",
    "relative positions": r"(^|\.)(rel_pos\w*|relative_position\w*)(\.|$)",
    "a learned table of positions": r"(^|\.)(\w*pos_embed\w*|\w*position_embedding\w*|positional_embedding)(\.\w+)?$",
    "rotary positions": r"(^|\.)(rope\w*|rotary\w*|periods|freqs\w*|inv_freq)(\.|$)",
    "norms of queries and keys": r"(^|\.)(q_norm|k_norm|qk_norm|norm_q|norm_k|q_ln|k_ln)\.",
    "a norm inside the attention": r"\.attn\.(norm|inner_attn_ln)\.",
    "a gated MLP (SwiGLU)": r"\.(mlp|ffn|feed_forward)\.(w\d+|fc1_[gx]|fc_?gate|gate\w*|norm|ffn_ln)\.",
    "a norm before the first block": r"^(norm_pre|ln_pre|pre_norm)\.",
    "a norm after pooling in place of one before": r"^fc_norm\.",
}


@dataclass(frozen=True)
class Keys:
    """Keys of a file and of a module, as the module names them.

    Attributes:
        unused: Tensors of the file that the module has no place for.
        target: The module's tensors.
        axes: Spatial axes of the file's network and of the module.
    """

    unused: Mapping[str, Tensor]
    target: Mapping[str, Tensor]
    axes: tuple[int, int]

    @property
    def root(self) -> str:
        """The dotted prefix that all keys of the module share."""
        names = [key.split(".")[:-1] for key in self.target]
        shared: list[str] = []
        for parts in zip(*names, strict=False):
            if len(set(parts)) > 1:
                break
            shared.append(parts[0])
        return "".join(f"{name}." for name in shared)


def refuse_misfits(file: Path, module: nn.Module, report: Report, minimum: float, keys: Keys) -> None:
    """Refuses weights that fill too little, or that were trained in another network.

    Args:
        file: The file, for messages.
        module: Receives the weights.
        report: What became of every key.
        minimum: Smallest share of the module's keys that must be filled.
        keys: Keys of the file that were not used, and those of the module.

    Raises:
        UserError: Names the reason.
    """
    network = type(module).__name__
    if minimum >= ENOUGH and report.matched >= SIMILAR:
        _refuse_kinds(file, module, report, keys)
    if report.matched < minimum:
        message = f"{file}: too few weights fit {network}: {report}; expected at least {minimum:.0%}"
        raise UserError(message)
    if minimum < ENOUGH:
        return
    if extra := deeper(keys.unused, keys.target):
        message = (
            f"{file}: the weights are those of a deeper network: {len(extra)} of their keys go on where "
            f"{network} ends ({some(extra)}); make the encoder as deep as that of the file was, or "
            "choose another file"
        )
        raise UserError(message)
    if absent := shallower(report.missing, keys.target):
        message = (
            f"{file}: the weights are those of a shallower network: {len(absent)} blocks of {network} would stay "
            f"random ({some(absent)}); make the encoder as deep as that of the file was, or choose another file"
        )
        raise UserError(message)
    if extra := inside(keys):
        message = (
            f"{file}: the weights are those of another network: {len(extra)} of their keys belong to "
            f"parts that {network} has without them ({some(extra)}); make the encoder as "
            "that of the file was (with its norms), or choose another file"
        )
        raise UserError(message)
    if report.unfilled_input:
        message = (
            f"{file}: {network} would look at images through random weights: {report}; make the encoder "
            "as that of the file was (its patch, its first convolution), or choose another file"
        )
        raise UserError(message)


def _refuse_kinds(file: Path, module: nn.Module, report: Report, keys: Keys) -> None:
    """Refuses tensors that change what the network computes and that one side has alone."""
    network, settings = type(module).__name__, module.settings_of_tensors if isinstance(module, Encoder) else {}
    further = deeper(keys.unused, keys.target)
    unused = {key: value for key, value in keys.unused.items() if not key.endswith(INDEX) and key not in further}
    if f"{keys.root}norm.weight" not in report.missing:
        unused = {key: value for key, value in unused.items() if not key.startswith(f"{keys.root}fc_norm.")}
    if isinstance(module, Encoder):
        unused = {key: value for key, value in unused.items() if not _is_same_table(module, key, value, keys)}
    for what, extra in _kinds_among(unused, keys.root).items():
        where, value = settings.get(what, ("", ""))
        first = tuple(unused[extra[0]].shape)
        message = (
            f"{file}: the weights have {what}, {network} has not: {len(extra)} of their tensors would be left out "
            f"({some(extra)}, {list(first)}), and the features would be others"
        )
        hint = f"Set it to {value.format(count=first[1] if len(first) > 2 else first[0])}, or choose another file."
        if not where:
            hint = (
                f"{network} cannot have it: take a class of encoder that has, such as medssl.encoders.timm2d.Timm2d "
                "with the model of timm that the weights are of, or choose another file."
            )
        raise UserError(message, key=where, hint=hint)
    blocks = shallower(report.missing, keys.target)
    tensors = {key: keys.target[key] for key in report.missing if not key.startswith(blocks)}
    for what, absent in _kinds_among(tensors, keys.root).items():
        where, _ = settings.get(what, ("", ""))
        why = report.unfit.get(absent[0], "")
        message = (
            f"{file}: {network} has {what}, the weights have not, so that {len(absent)} tensors would stay as they "
            f"were initialized ({some(absent)}{': ' + why if why else ''})"
        )
        hint = "Leave it out of the encoder, or choose another file." if where else "Choose another file."
        raise UserError(message, key=where, hint=hint)


def _kinds_among(tensors: Mapping[str, Tensor], root: str) -> dict[str, tuple[str, ...]]:
    """Keys that change what a network computes, by their kind."""
    found: dict[str, list[str]] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(root)
        if re.match(r"(decoder\w*|head\w*|fc|classifier|predictor|projection\w*)(\.|$)", name) or HARMLESS.match(name):
            continue
        what = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "")
        if not what and "." not in name and tensor.ndim == 3 and len(tensor) == 1:
            what = "a learned token or table of its own"
        if what:
            found.setdefault(what, []).append(key)
    return {what: tuple(names) for what, names in found.items()}


def _is_same_table(encoder: Encoder, key: str, table: Tensor, keys: Keys) -> bool:
    """Whether a table of positions holds what the encoder computes by itself; of slices for a volume none does."""
    if not re.search(KINDS["a learned table of positions"], key.removeprefix(keys.root)) or table.ndim != 3:
        return False
    return keys.axes[0] != keys.axes[1] or encoder.computes_positions(table)


def deeper(unused: Collection[str], module_keys: Iterable[str]) -> tuple[str, ...]:
    """Keys of the file in blocks behind the last one of the module, such as ``stages.4.`` after ``stages.3.``."""
    last_block: dict[str, int] = {}
    for key in module_keys:
        for block in BLOCK.finditer(key):
            last_block[key[: block.start(1)]] = max(int(block[1]), last_block.get(key[: block.start(1)], 0))
    blocks = tuple(
        key[: block.end()]
        for key in unused
        for block in BLOCK.finditer(key)
        if int(block[1]) > last_block.get(key[: block.start(1)], int(block[1]))
    )
    return tuple(key for key in unused if key.startswith(blocks))


def shallower(missing: Iterable[str], module_keys: Iterable[str]) -> tuple[str, ...]:
    """Blocks of the module, such as ``stages.3.``, of which the file filled nothing although it filled others."""
    unfilled = set(missing)
    filled_of: dict[str, list[bool]] = {}
    for key in module_keys:
        for block in BLOCK.finditer(key):
            filled_of.setdefault(key[: block.end()], []).append(key not in unfilled)
    empty = [block for block, filled in filled_of.items() if not any(filled)]
    return tuple(block for block in empty if not any(block != outer and block.startswith(outer) for outer in empty))


def inside(keys: Keys) -> tuple[str, ...]:
    """Keys of the file that belong to blocks or parts of the module, but that the module does not have."""
    parts = {key[: block.end()] for key in keys.target for block in BLOCK.finditer(key)}
    root = keys.root
    tops = {key.removeprefix(root).split(".")[0] for key in keys.target if "." in key.removeprefix(root)}
    return tuple(
        key
        for key in keys.unused
        if not key.endswith(INDEX)
        and (
            any(key[: block.end()] in parts for block in BLOCK.finditer(key))
            or (key.startswith(root) and "." in key[len(root) :] and key[len(root) :].split(".")[0] in tops)
        )
    )


def misfit(key: str, value: Tensor, target: Tensor) -> str:
    """Why a weight could not be converted: the two shapes."""
    shapes = f"{list(value.shape)} in the file, {list(target.shape)} here"
    return shapes + (
        "; only square or cubic grids of patches are made to fit" if is_position_table(key, value, target) else ""
    )


def some(keys: tuple[str, ...]) -> str:
    """The first three keys."""
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
