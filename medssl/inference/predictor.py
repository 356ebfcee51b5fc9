"""A fine-tuned network on one scan: prepared by the network's card, window by window, back on the scan's own grid."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from medssl.data.loading.crops import slice_axes
from medssl.data.store.preprocess import prepare
from medssl.data.store.restore import mapping_to_source, restore
from medssl.encoders.weights import CARD, WEIGHTS
from medssl.heads import sliding
from medssl.heads.mirroring import MirroredNetwork
from medssl.heads.weights import HEAD, load_network
from medssl.types import UserError
from medssl.views.intensity import decode, lowest_value
from medssl.views.mirroring import allowed_axes, left_right_axis

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from jaxtyping import Float, Int
    from torch import Tensor

    from medssl.data.formats.reading import Volume
    from medssl.data.store.preprocess import Prepared
    from medssl.heads.base import Network
    from medssl.types import Card, LabelSchema, Tuned, ValueDomain


MIRRORING = ("none", "safe", "all")  # the rules of data.view.geometry.flip, each with more axes than the one before


@dataclass(frozen=True)
class Windows:
    """How a scan is gone through.

    Attributes:
        overlap: Share of a window that it shares with the next one, 0 to below 1 (segmentation).
        batch_size: Windows per forward pass, at least 1.
        precision: "bf16" computes in half precision: faster where the device supports it, with about two digits.
        accelerator: Device: "auto" takes a GPU if there is one.
        mirror: Average the predictions over mirrored windows: along the axes that training mirrored ("trained"), all
            but the left-right axis ("safe"), "all" or "none". Each axis takes twice the time. Axes that training did
            not mirror are refused. Networks of versions that did not note it are not mirrored by "trained".
    """

    overlap: float = 0.5
    batch_size: int = 2
    precision: Literal["bf16", "fp32"] = "fp32"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    mirror: Literal["trained", "safe", "all", "none"] = "trained"

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            message = "must be from 0 to below 1"
            raise UserError(message, key="windows.overlap", got=self.overlap)
        if self.batch_size < 1:
            message = "must be at least 1"
            raise UserError(message, key="windows.batch_size", got=self.batch_size)


@dataclass(frozen=True)
class Fitted:
    """A network that is ready to predict.

    Attributes:
        network: In evaluation mode, on its device.
        card: What it is.
        tuned: The card's part on the head.
        digest: Names weights and card without a path, 16 hexadecimal digits.
        device: Where it computes.
    """

    network: Network
    card: Card
    tuned: Tuned
    digest: str
    device: torch.device

    @property
    def schema(self) -> LabelSchema:
        """Its classes."""
        return self.tuned.schema

    @property
    def kind(self) -> str:
        """What its head answers: a class for every voxel, or a class, findings or a number for the whole scan."""
        return self.network.head.kind


def device_of(accelerator: Literal["auto", "cpu", "gpu"]) -> torch.device:
    """The device that is asked for.

    Raises:
        UserError: A GPU is asked for and torch sees none.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        message = "windows.accelerator is gpu, but torch sees none: set it to auto or cpu"
        raise UserError(message)
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def mirror_rule(tuned: Tuned, windows: Windows) -> str:
    """The rule of mirroring ("none", "safe" or "all") that ``windows.mirror`` means for a network.

    Raises:
        UserError: Axes that training did not mirror.
    """
    known = "safe" if tuned.flip is None else tuned.flip  # what all recipes of versions that did not note it have
    if windows.mirror == "trained":
        return "none" if tuned.flip is None else tuned.flip
    if MIRRORING.index(windows.mirror) > MIRRORING.index(known):
        what = "no axis was" if known == "none" else "all axes but the left-right one were"
        message = f"the network was trained with data.view.geometry.flip {known}: {what} mirrored"
        if tuned.flip is None:
            message = "the card does not say which axes training mirrored"
        hint = "Left and right differ in the body: train with data.view.geometry.flip all where they do not matter."
        expected = ", ".join(["trained", *MIRRORING[: MIRRORING.index(known) + 1]])
        raise UserError(message, key="windows.mirror", got=windows.mirror, expected=expected, hint=hint)
    return windows.mirror


def mirrored(fitted: Fitted, windows: Windows, affine: Float[np.ndarray, "n+1 n+1"]) -> Network:
    """The network, or one that also predicts mirrored windows of a scan with this affine (voxel to world)."""
    rule, axes = mirror_rule(fitted.tuned, windows), len(fitted.tuned.window)
    world = torch.from_numpy(np.asarray(affine, np.float64)) if len(affine) == axes + 1 else torch.eye(axes + 1)
    allowed = allowed_axes(rule, left_right_axis(world[None]), n_axes=axes)[0]  # slices lie like images
    chosen = tuple(int(axis) for axis in allowed.nonzero())
    return MirroredNetwork(fitted.network, chosen) if chosen else fitted.network


def settings_of(tuned: Tuned, windows: Windows) -> dict[str, Any]:
    """What of the windows changes a prediction: part of what says how results were made."""
    rule = mirror_rule(tuned, windows)
    settings = {"overlap": windows.overlap, "precision": windows.precision}
    return settings if rule == "none" else settings | {"mirror": rule}  # as older results, where nothing is mirrored


def load_fitted(run: Path, device: torch.device, trust: Collection[str] = ()) -> Fitted:
    """Loads what fine-tuning left in a run folder; ``trust`` as of ``load_card``.

    Raises:
        UserError: No card, a run without a head, or files that do not belong together.
    """
    network, card = load_network(run, trust)
    assert card.tuned is not None  # or load_network would have refused
    digest = hashlib.blake2b(digest_size=8)
    for name in (WEIGHTS, HEAD, CARD):
        digest.update((run / name).read_bytes())
    return Fitted(network.to(device), card, card.tuned, digest.hexdigest(), device)


def segment(
    fitted: Fitted,
    volume: Volume,
    domain: ValueDomain,
    windows: Windows = Windows(),
) -> Int[np.ndarray, "*s"]:
    """Segments a scan on its own grid; its label, if it has one, is not looked at.

    Args:
        fitted: A segmentation network.
        volume: The scan as it lies on disk.
        domain: What its values are.
        windows: How it is gone through.

    Returns:
        Stored values of the classes [*s], in the smallest integer type that holds them.

    Raises:
        UserError: The network does not fit the scan, or its scores are not finite.
    """
    prepared = _prepared(fitted, volume, domain)
    shape, window = prepared.image.shape[1:], fitted.tuned.window
    way, plane = mapping_to_source(prepared, volume.affine), _plane(fitted, prepared)
    axis = fitted.tuned.slice_axis
    if plane is None:  # the slab that is held is thinnest along the axis with most windows
        axis = int(np.argmax(np.array(shape) / np.array(window)))
    with _computing(fitted, windows):
        blocks = sliding.slide(
            mirrored(fitted, windows, prepared.affine),
            reader(prepared),
            shape,
            window=window,
            axis=axis,
            plane=plane,
            overlap=windows.overlap,
            batch_size=windows.batch_size,
        )
        numbers = restore(blocks, way, axis=axis, classes=len(fitted.schema.classes))
    return stored_values(numbers, fitted.schema)


def classify(
    fitted: Fitted,
    volume: Volume,
    domain: ValueDomain,
    windows: Windows = Windows(),
) -> Float[np.ndarray, "K"]:
    """What the head answers for a whole scan (``Head.answer``); its label, if it has one, is not looked at.

    Raises:
        UserError: The network does not fit the scan, or its scores are not finite.
    """
    prepared = _prepared(fitted, volume, domain)
    plane = _plane(fitted, prepared)
    with _computing(fitted, windows):
        probabilities = sliding.classify(
            mirrored(fitted, windows, prepared.affine),
            reader(prepared),
            prepared.image.shape[1:],
            window=fitted.tuned.window,
            axis=0 if plane is None else fitted.tuned.slice_axis,
            plane=plane,
            batch_size=windows.batch_size,
        )
    result: Float[np.ndarray, "K"] = probabilities.float().cpu().numpy()
    return result


def reader(prepared: Prepared) -> Callable[[tuple[int, ...], tuple[int, ...]], Float[Tensor, "C *w"]]:
    """Boxes of a prepared scan as the network sees them, by start and size; outside the scan the lowest value."""
    codes = torch.from_numpy(prepared.image)
    numbers = torch.from_numpy(prepared.coding.intensity)[None]
    fill = torch.from_numpy(prepared.coding.fill).reshape(1, -1, *[1] * (codes.ndim - 1))
    lowest = lowest_value(numbers, decode(fill, numbers))[0]

    def read(start: tuple[int, ...], size: tuple[int, ...]) -> Float[Tensor, "C *w"]:
        inside = [(max(0, a), min(n, a + k)) for a, k, n in zip(start, size, codes.shape[1:], strict=True)]
        box = codes[(slice(None), *(slice(low, high) for low, high in inside))]
        values = decode(box[None], numbers)[0]
        if values.shape[1:] == tuple(size):
            return values
        padded = lowest.expand(len(codes), *size).clone()
        place = (slice(low - a, high - a) for (low, high), a in zip(inside, start, strict=True))
        padded[(slice(None), *place)] = values
        return padded

    return read


def stored_values(numbers: Int[np.ndarray, "*s"], schema: LabelSchema) -> Int[np.ndarray, "*s"]:
    """Class numbers as the values that label files hold."""
    values = [value for value, _ in schema.classes]
    if values == list(range(len(values))):
        return numbers
    kind = np.result_type(np.min_scalar_type(min(values)), np.min_scalar_type(max(values)))
    result: Int[np.ndarray, "*s"] = np.array(values, kind)[numbers]
    return result


def reason_of(error: Exception) -> str:
    """One line on why a scan could not be predicted."""
    text = " ".join(str(error).split()) or "no reason given"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _prepared(fitted: Fitted, volume: Volume, domain: ValueDomain) -> Prepared:
    """The scan by the rules of the card, after refusing what the network cannot take."""
    channels, axes = volume.image.shape[0], volume.image.ndim - 1
    takes, window = fitted.network.encoder.in_channels, len(fitted.tuned.window)
    if channels != takes:
        message = f"the network takes {takes} channel(s), the scan has {channels}: choose another scan or network"
        raise UserError(message)
    if window > axes:
        message = f"the network was trained on {window}D windows, the scan is a {axes}D image: choose a 2D network"
        raise UserError(message)
    return prepare(replace(volume, label=None), fitted.card.preprocess, domain=domain)


def _plane(fitted: Fitted, prepared: Prepared) -> tuple[int, int] | None:
    """Row and column axis of the slices, where a volume is gone through slice by slice."""
    if len(fitted.tuned.window) == prepared.image.ndim - 1:
        return None
    return slice_axes(prepared.affine, fitted.tuned.slice_axis)


def _computing(fitted: Fitted, windows: Windows) -> Any:
    return torch.autocast(fitted.device.type, torch.bfloat16, enabled=windows.precision == "bf16")
