"""Sliding-window inference over a whole scan, with Gaussian weights and memory bounded by the window.

Windows are spaced evenly from the first voxel to the last. If the scan is smaller than the window, one window is
centered on it. The probabilities of a voxel are the mean over the windows that contain it. The weight of a window is
``exp(-d**2 / (2 sigma**2))`` for the distance d to its center, with sigma an eighth of the window (Isensee et al.,
nnU-Net, Nature Methods 2021).
"""

from __future__ import annotations

from itertools import islice, product
from math import ceil
from typing import TYPE_CHECKING

import torch

from medssl.types import Features, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jaxtyping import Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.heads.base import Network

    Start = tuple[int, ...]
    Read = Callable[[Start, Start], Float[Tensor, "C *w"]]

SIGMA = 1 / 8  # of the Gaussian, as a share of the window
LOWEST = 1e-3  # smallest weight: corners that only one window contains are divided by it


def slide(
    network: Network,
    read: Read,
    shape: tuple[int, ...],
    *,
    window: tuple[int, ...],
    axis: int,
    plane: tuple[int, int] | None = None,
    overlap: float = 0.5,
    batch_size: int = 2,
) -> Iterator[tuple[int, Float[Tensor, "K n *rest"]]]:
    """Segments a scan window by window and yields its planes along ``axis`` as soon as they are finished.

    Memory holds the planes of one window along ``axis``, and one batch of windows.

    Args:
        network: Network in evaluation mode with a segmentation head; it runs on its own device.
        read: Function of ``start`` and ``size`` that returns the network's input [C, *size]; the box may reach beyond
            the scan.
        shape: Voxels of the scan per axis.
        window: Voxels of the window per axis; two numbers for slices of a volume.
        axis: Axis of the scan along which planes are yielded; slices lie across it.
        plane: Axes of the scan that are the rows and columns of a slice; None takes the order of the scan's axes.
        overlap: Smallest share of a window that the next one covers again, 0 to below 1.
        batch_size: Windows in one forward pass.

    Yields:
        Number of the first plane, and probabilities [K, planes, *other axes in their order], float32 on the CPU.
        Planes come in order, each once.

    Raises:
        UserError: The overlap is out of range, the window has another number of axes than the scan, or the network's
            scores are not finite.
    """
    if not 0 <= overlap < 1:
        message = f"overlap {overlap}: expected a number from 0 to below 1"
        raise UserError(message)
    order = _order(shape, window, axis, plane)
    box = _box(window, order, len(shape))
    starts = list(product(*(_starts(n, w, overlap) for n, w in zip(shape, box, strict=True))))
    starts.sort(key=lambda start: start[axis])
    predictions = _predict(network, read, starts, box, order, batch_size)
    return _planes(predictions, shape, box, axis, len(network.head.schema.classes))


def classify(
    network: Network,
    read: Read,
    shape: tuple[int, ...],
    *,
    window: tuple[int, ...],
    axis: int,
    plane: tuple[int, int] | None = None,
    batch_size: int = 2,
) -> Float[Tensor, "K"]:
    """Mean prediction over the fewest windows that cover a scan: probabilities or a number, float32 on the CPU.

    The arguments are those of :func:`slide`, with a head for whole images. Windows of two axes cover every slice of a
    volume.

    Raises:
        UserError: The window has another number of axes than the scan, or the network's scores are not finite.
    """
    order = _order(shape, window, axis, plane)
    box = _box(window, order, len(shape))
    starts = list(product(*(_starts(n, w, 0.0) for n, w in zip(shape, box, strict=True))))
    total = torch.zeros(len(network.head.schema.classes))
    for _, probabilities in _predict(network, read, starts, box, order, batch_size):
        total += probabilities
    return total / len(starts)


@torch.inference_mode()
def encode(
    encoder: Encoder,
    read: Read,
    shape: tuple[int, ...],
    *,
    window: tuple[int, ...],
    axis: int,
    plane: tuple[int, int] | None = None,
    batch_size: int = 2,
) -> Iterator[tuple[Start, Start, Features]]:
    """Yields the features of the fewest windows that cover a scan, window by window.

    The arguments are those of :func:`slide`, with an encoder in evaluation mode instead of a network.

    Yields:
        First voxel of the window per axis of the scan; the axes of the scan in the order of the features' axes;
        features of a batch of one on the device of the encoder.

    Raises:
        UserError: The window has another number of axes than the scan.
    """
    order = _order(shape, window, axis, plane)
    box = _box(window, order, len(shape))
    starts = list(product(*(_starts(n, w, 0.0) for n, w in zip(shape, box, strict=True))))
    device = next(encoder.parameters()).device
    for batch, images in _images(read, starts, box, order, batch_size):
        features = encoder(images.to(device))
        for row, start in enumerate(batch):
            sample_row = slice(row, row + 1)
            tokens = None if features.tokens is None else features.tokens[sample_row]
            yield (
                start,
                order,
                Features(tuple(x[sample_row] for x in features.maps), features.pooled[sample_row], tokens),
            )


def gaussian(window: tuple[int, ...]) -> Float[Tensor, "*w"]:
    """Weight of every voxel of a window: about 1 in the middle, at least ``LOWEST`` at the border."""
    weight = torch.ones(())
    for size in window:
        distance = torch.arange(size) - (size - 1) / 2
        weight = weight[..., None] * torch.exp(-0.5 * (distance / (SIGMA * size)).square())
    return weight.clamp(min=LOWEST)


def _order(shape: tuple[int, ...], window: tuple[int, ...], axis: int, plane: tuple[int, int] | None) -> Start:
    """Axes of the scan in the order of the network's input."""
    axes = tuple(range(len(shape)))
    if len(window) == len(shape) and plane is None:
        return axes
    others = tuple(each_axis for each_axis in axes if each_axis != axis)
    if len(window) != len(others) or len(window) != 2:
        message = (
            f"window {window} has {len(window)} axes, the scan has {len(shape)}: images take windows of 2 axes, "
            "volumes of 3, or of 2 for slices; use a network of the scan's kind"
        )
        raise UserError(message)
    if plane is not None and tuple(sorted(plane)) != others:
        message = f"plane {plane}: expected the axes {others} in either order, slices lie across axis {axis}"
        raise ValueError(message)
    return plane or others


def _box(window: tuple[int, ...], order: Start, ndim: int) -> Start:
    """Voxels of the window per axis of the scan; 1 along the axis that slices lie across."""
    box = [1] * ndim
    for size, axis in zip(window, order, strict=True):
        box[axis] = size
    return tuple(box)


def _starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of evenly spaced windows along one axis, as few as the overlap allows; the last ends the axis."""
    if size <= window:
        return [-((window - size) // 2)]
    steps = max(1, ceil((size - window) / max(1.0, window * (1 - overlap)) - 1e-6))
    return [round(step * (size - window) / steps) for step in range(steps + 1)]


def _predict(
    network: Network, read: Read, starts: Iterable[Start], box: Start, order: Start, batch_size: int
) -> Iterator[tuple[Start, Tensor]]:
    """Start and probabilities ([K, *box] of a segmentation, [K] of a classification) of every window, in order."""
    across, permutation = _across(box, order)
    for batch, images in _images(read, starts, box, order, batch_size):
        for start, window_output in zip(batch, _probabilities(network, images), strict=True):
            if window_output.ndim > 1:
                window_output = (window_output[..., None] if across else window_output).movedim(
                    tuple(range(1, len(box) + 1)), permutation
                )
            yield start, window_output


def _images(
    read: Read, starts: Iterable[Start], box: Start, order: Start, batch_size: int
) -> Iterator[tuple[list[Start], Float[Tensor, "B C *w"]]]:
    """Yields batches of windows in the axis order of the network, with their first voxels."""
    across, permutation = _across(box, order)
    remaining = iter(starts)
    while batch := list(islice(remaining, batch_size)):
        images = [read(start, box).permute(0, *permutation) for start in batch]
        yield batch, torch.stack([x[..., 0] if across else x for x in images])


def _across(box: Start, order: Start) -> tuple[Start, list[int]]:
    """Axis that slices lie across, if any; the axes of a box [C, *box] in the order of the network, that axis last."""
    across = tuple(axis for axis in range(len(box)) if axis not in order)
    return across, [axis + 1 for axis in (*order, *across)]


@torch.inference_mode()
def _probabilities(network: Network, images: Float[Tensor, "B C *w"]) -> Float[Tensor, "B K *w"] | Float[Tensor, "B K"]:
    """Predictions of the head (probabilities, or a number), float32 on the CPU."""
    logits = network(images.to(next(network.parameters()).device))
    assert isinstance(logits, torch.Tensor), "the network is in training mode"
    probabilities = network.head.predictions(logits.float()).cpu()
    if not bool(probabilities.isfinite().all()):
        message = (
            "the network's scores are not finite: its training diverged, or the scan holds values that are not finite; "
            "fine-tune with a lower learning rate, or look at the scan"
        )
        raise UserError(message)
    return probabilities


def _planes(
    predictions: Iterable[tuple[Start, Tensor]], shape: Start, box: Start, axis: int, classes: int
) -> Iterator[tuple[int, Tensor]]:
    """Adds up weighted windows in a slab that moves along ``axis``; yields planes that no later window reaches."""
    length = min(box[axis], shape[axis])
    other_lengths = shape[:axis] + shape[axis + 1 :]
    weight = gaussian(box).movedim(axis, 0)
    sums, weights = torch.zeros(classes, length, *other_lengths), torch.zeros(length, *other_lengths)
    first = 0
    for start, probabilities in predictions:
        plane_start = max(0, start[axis])
        if finished_planes := plane_start - first:
            yield first, sums[:, :finished_planes] / weights[:finished_planes]
            for slab in (sums, weights[None]):
                slab[:, : length - finished_planes] = slab[:, finished_planes:].clone()
                slab[:, length - finished_planes :] = 0
            first = plane_start
        slab_part, window_part = [], []  # where the window lies in the slab, and which part of it lies in the scan
        for scan_axis in (axis, *(other_axis for other_axis in range(len(shape)) if other_axis != axis)):
            low, high = max(0, start[scan_axis]), min(shape[scan_axis], start[scan_axis] + box[scan_axis])
            offset = first if scan_axis == axis else 0
            slab_part.append(slice(low - offset, high - offset))
            window_part.append(slice(low - start[scan_axis], high - start[scan_axis]))
        part_weight = weight[tuple(window_part)]
        sums[(slice(None), *slab_part)] += probabilities.movedim(axis + 1, 1)[(slice(None), *window_part)] * part_weight
        weights[tuple(slab_part)] += part_weight
    yield first, sums / weights
