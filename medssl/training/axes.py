"""Whether an encoder, a view and the scans of a store have axes that go together: images, volumes, slices."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from medssl.data.store.store import Store
from medssl.encoders.weights import CARD, make_encoder
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from medssl.training.initial_weights import Allowed, InitialWeights

SLICES = "a 2D recipe, which goes through volumes slice by slice (data.sampling.slice_axis)"


def open_store(
    path: Path,
    initial: InitialWeights,
    allow: Sequence[Allowed],
    *,
    size: Sequence[int] | None = None,
    key: str = "",
    slides: bool = False,
) -> Store:
    """Opens a store that an encoder fits: by its axes first, then by the rules of its card.

    Args:
        path: Folder of the store.
        initial: The encoder, as a description.
        allow: With "preprocess", other rules than those of the card are taken.
        size: Voxels per axis of the view; None where nothing tells.
        key: What sets the size.
        slides: Whole slides are taken, too: they are not gone through window by window.

    Raises:
        UserError: Says which two do not fit, and what to choose.
    """
    opened = Store.open(path)
    if opened.tier == "slides" and not slides:
        message, hint = "holds whole slides", "Embed its slides first, and give the folder of bags instead"
        raise UserError(message, key="store", got=path.name, hint=hint)
    held = set(opened.axes)
    takes = _axes_of(initial)
    if message := misfit(takes, held, size, key):
        raise UserError(message)
    if initial.card is None or "preprocess" in allow:
        return opened
    try:
        return Store.open(path, preprocess=initial.card.preprocess)
    except UserError as error:
        if takes != {2} or held != {3}:
            raise
        message = (
            f"the encoder takes 2D images, the store {path.name} holds volumes that other rules preprocessed: take an "
            f"encoder of a 3D recipe; or cache the volumes by the encoder's rules, and take {SLICES}"
        )
        raise UserError(message) from error


def misfit(takes: Collection[int], held: Collection[int], size: Sequence[int] | None, key: str) -> str:
    """One line on axes that do not go together; "" where they do, or where the encoder cannot be asked.

    Args:
        takes: Numbers of axes that the encoder takes; none where that is not known.
        held: Numbers of axes of the stored scans.
        size: Voxels per axis of the view.
        key: What sets the size.
    """
    if not takes or not held:
        return ""
    accepted = " or ".join(f"{axes}D" for axes in sorted(takes))
    scans = "images and volumes" if len(held) > 1 else "images" if 2 in held else "volumes"
    if max(held) < min(takes):
        return f"the encoder takes {accepted}, the store holds {scans} (2D): choose a 2D encoder and a 2D recipe"
    if size is None or len(size) in takes:
        return ""
    remedy = "a 3D recipe, or a 2D encoder" if min(takes) > len(size) else f"a 3D encoder, or {SLICES}"
    both = f"the encoder takes {accepted}, {key} {list(size)} has {len(size)} axes"
    return f"{both}, the store holds {scans}: choose {remedy}"


def _axes_of(initial: InitialWeights) -> set[int]:
    """Numbers of axes that the encoder takes; none where it cannot be made without memory."""
    arguments = initial.encoder.init_args
    bare = replace(initial.encoder, init_args=arguments | ({"pretrained": False} if "pretrained" in arguments else {}))
    try:
        with torch.device("meta"):
            return set(make_encoder(bare, "encoder" if initial.card is None else CARD, initial.trust).ndims)
    except (RuntimeError, NotImplementedError):
        return set()
