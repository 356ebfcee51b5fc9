"""Masks over a grid of cells, for any number of axes. ``True`` is hidden from the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm, prod
from typing import TYPE_CHECKING

from medssl.ops.limits import expect
from medssl.ops.patches import cells_of
from medssl.types import UserError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Int
    from torch import Tensor

    from medssl.ops.draws import Draws


@dataclass(frozen=True)
class Masks:
    """What is hidden from the student: boxes of cells, drawn for each sample and view.

    Attributes:
        ratio: Lowest and highest share of cells.
        unmasked: Share of the views that stay whole.
        cell: Voxels of one cell per axis; None takes the encoder's ``mask_cell``.
        boxes: False hides single cells.
    """

    ratio: tuple[float, float] = (0.5, 0.75)
    unmasked: float = 0.0
    cell: tuple[int, ...] | None = None
    boxes: bool = True

    def __post_init__(self) -> None:
        expect(0 <= self.ratio[0] <= self.ratio[1] <= 1, "masks.ratio", self.ratio, "two shares, the lower first")
        expect(0 <= self.unmasked <= 1, "masks.unmasked", self.unmasked, "from 0 to 1")

    def draw(self, cells: Sequence[int], draws: Draws, views: int = 1) -> Bool[Tensor, "B *cells"]:
        """Masks of several views of the samples; the rows of the first view come first.

        Args:
            cells: Cells per axis.
            draws: Random numbers keyed by sample.
            views: Number of views; each has masks of its own.

        Returns:
            Mask on the CPU, with ``views`` times as many rows as there are samples.
        """
        import torch

        whole, boxes = self.unmasked, self.boxes
        return torch.cat([varied_hidden(cells, self.ratio, draws, unmasked=whole, blocks=boxes) for _ in range(views)])


def hidden_count(cells: Sequence[int], ratio: float) -> int:
    """Number of hidden cells of a grid: all but ``round(n * (1 - ratio))``, as in SparK (Tian et al. 2023).

    >>> hidden_count((7, 7), 0.6)
    29

    Raises:
        UserError: The ratio lies outside 0..1.
    """
    if not 0.0 <= ratio <= 1.0:
        message = f"mask ratio {ratio} must lie between 0 (nothing hidden) and 1 (everything hidden)"
        raise UserError(message)
    total = prod(cells)
    return total - round(total * (1.0 - ratio))


def mask_cells(
    size: Sequence[int], cell: Sequence[int], strides: Sequence[Sequence[int]], ratio: float
) -> tuple[int, ...]:
    """Number of cells per axis of the mask of a view.

    Args:
        size: Voxels of the view per axis.
        cell: Voxels of one cell per axis.
        strides: Total stride of each map of the encoder per axis, fine to coarse.
        ratio: Share of cells to hide.

    Raises:
        UserError: A cell does not nest with a stride, the size is not a multiple of cell and stride (names the nearest
            valid sizes), or the ratio hides all cells or none.
    """
    size, cell = tuple(size), tuple(cell)
    if len(cell) != len(size) or min(cell) < 1:
        message = f"cell {cell} needs one number, 1 or more, for each of the {len(size)} axes of view size {size}"
        raise UserError(message)
    for stride in strides:
        if any(max(a, b) % min(a, b) for a, b in zip(stride, cell, strict=True)):
            message = (
                f"mask cell {cell} does not nest with the encoder's stride {tuple(stride)}: one must divide the other "
                "per axis"
            )
            raise UserError(message)
    noun = f"with encoder stride {tuple(strides[-1])} and mask cell {cell}, view size"
    cells_of(size, tuple(map(lcm, strides[-1], cell)), noun=noun)
    cells = cells_of(size, cell)
    if not 0 < (count := hidden_count(cells, ratio)) < prod(cells):
        message = (
            f"mask ratio {ratio} hides {count} of {prod(cells)} cells {cells}: some must be hidden, some visible; "
            "take a larger view or another mask_ratio"
        )
        raise UserError(message)
    return cells


def random_hidden(cells: Sequence[int], ratio: float, draws: Draws) -> Bool[Tensor, "B *cells"]:
    """Hides cells uniformly at random, exactly :func:`hidden_count` of them in every sample.

    Args:
        cells: Cells per axis.
        ratio: Share of cells to hide, 0 to 1.
        draws: Random numbers keyed by sample, so that the mask of a sample does not depend on its batch.

    Returns:
        Mask on the CPU.
    """
    hidden = draws.permutation(prod(cells)) < hidden_count(cells, ratio)
    return hidden.reshape(-1, *cells)


def block_hidden(
    cells: Sequence[int], ratio: float, draws: Draws, *, share: tuple[float, float] = (0.1, 0.4), aspect: float = 3.0
) -> Bool[Tensor, "B *cells"]:
    """Hides boxes of neighboring cells until exactly :func:`hidden_count` cells are hidden in every sample.

    Boxes are drawn as in BEiT (Bao et al. 2022), for any number of axes. Of the last box, a random subset is hidden, so
    that every sample hides the same number of cells.

    Args:
        cells: Cells per axis.
        ratio: Share of cells to hide, 0 to 1.
        draws: Random numbers keyed by sample.
        share: Smallest and largest share of the grid that one box covers.
        aspect: Largest ratio between a side of a box and its mean side.

    Returns:
        Mask on the CPU.

    Raises:
        UserError: The ratio, the shares or the aspect are out of range.
    """
    import numpy as np
    import torch

    _refuse_boxes(share, aspect)
    count = hidden_count(cells, ratio)
    grids = [_blocks(cells, count, generator, share, aspect) for generator in draws.numpy()]
    return torch.from_numpy(np.stack(grids))


def _blocks(
    cells: Sequence[int], count: int, generator: np.random.Generator, share: tuple[float, float], aspect: float
) -> np.ndarray:
    """One sample of :func:`block_hidden`."""
    import numpy as np

    grid = np.zeros(cells, dtype=bool)
    while (missing := count - int(grid.sum())) > 0:
        sides = _sides(cells, generator, share, aspect)
        start = generator.integers(0, np.asarray(cells) - sides + 1)
        box = np.zeros(cells, dtype=bool)
        box[tuple(slice(low, low + length) for low, length in zip(start, sides, strict=True))] = True
        newly_hidden = np.flatnonzero(box & ~grid)
        grid.flat[generator.permutation(newly_hidden)[:missing]] = True
    return grid


def varied_hidden(
    cells: Sequence[int],
    ratios: tuple[float, float],
    draws: Draws,
    *,
    unmasked: float = 0.0,
    blocks: bool = True,
    share: tuple[float, float] = (0.1, 0.4),
    aspect: float = 3.0,
) -> Bool[Tensor, "B *cells"]:
    """Hides another share of the cells in each sample, and nothing at all in some, as in iBOT (Zhou et al. 2022).

    Whether a sample is masked, its share and its boxes are drawn from the sample's own stream. Samples hide equally
    many cells, which the mask mode "drop" needs, only with equal ``ratios`` and ``unmasked`` of 0.

    Args:
        cells: Cells per axis.
        ratios: Lowest and highest share of cells to hide; drawn evenly between them.
        draws: Random numbers keyed per sample; a second call goes on in each stream.
        unmasked: Probability that a sample stays whole.
        blocks: Hide boxes of neighboring cells (:func:`block_hidden`); False hides single cells.
        share: Smallest and largest share of the grid that one box covers.
        aspect: Largest ratio between a side of a box and its mean side.

    Returns:
        Mask on the CPU.

    Raises:
        UserError: Ratios, probability, shares or aspect out of range.
    """
    import numpy as np
    import torch

    low, high = ratios
    if not 0.0 <= low <= high <= 1.0 or not 0.0 <= unmasked <= 1.0:
        message = (
            f"mask ratios {low} to {high} and share of unmasked samples {unmasked}: expected 0 <= lowest <= highest "
            "<= 1 and a share from 0 to 1"
        )
        raise UserError(message)
    _refuse_boxes(share, aspect)
    grids = []
    for generator in draws.numpy():
        whole, ratio = generator.random() < unmasked, generator.uniform(low, high)
        count = 0 if whole else hidden_count(cells, ratio)
        if blocks:
            grids.append(_blocks(cells, count, generator, share, aspect))
        else:
            grids.append((generator.permutation(prod(cells)) < count).reshape(cells))
    return torch.from_numpy(np.stack(grids))


def target_boxes(
    cells: Sequence[int],
    draws: Draws,
    sizes: np.random.Generator,
    *,
    count: int = 4,
    share: tuple[float, float] = (0.15, 0.2),
    aspect: float = 1.5,
) -> tuple[Int[Tensor, "B M T"], Bool[Tensor, "B *cells"]]:
    """Boxes of cells to predict, and what to hide so that none of them is visible (Assran et al., I-JEPA, CVPR 2023).

    All boxes have one size, drawn from ``sizes``. Where boxes overlap, further cells are hidden at random, so that
    every sample hides ``count`` times the cells of a box, which the mask mode "drop" needs. A tenth of the cells at
    least stays visible: boxes that would leave less are made smaller.

    Args:
        cells: Cells per axis.
        draws: Random numbers keyed by sample, for the places of the boxes.
        sizes: Random numbers that all processes share, for the size of the boxes.
        count: Number of boxes M.
        share: Smallest and largest share of the grid that one box covers.
        aspect: Largest ratio between a side of a box and its mean side.

    Returns:
        Numbers of the cells of each box in C order, and the mask; both on the CPU.

    Raises:
        UserError: Shares or aspect out of range, or the grid is too small for the boxes.
    """
    import numpy as np
    import torch

    _refuse_boxes(share, aspect)
    sides = _sides(cells, sizes, share, aspect)
    while count * sides.prod() > 0.9 * prod(cells) and sides.max() > 1:
        sides[sides.argmax()] -= 1
    if count * sides.prod() > 0.9 * prod(cells):
        message = f"{count} boxes on a grid of {tuple(cells)} cells leave too few visible: take a larger view"
        raise UserError(message)
    numbers = np.arange(prod(cells)).reshape(cells)
    boxes = np.empty((len(draws), count, int(sides.prod())), dtype=np.int64)
    hidden = np.zeros((len(draws), prod(cells)), dtype=bool)
    for row, generator in enumerate(draws.numpy()):
        for box in boxes[row]:
            start = generator.integers(0, np.asarray(cells) - sides + 1)
            box[:] = numbers[tuple(slice(a, a + n) for a, n in zip(start, sides, strict=True))].ravel()
        hidden[row, boxes[row].ravel()] = True
        rest = np.flatnonzero(~hidden[row])
        hidden[row, generator.permutation(rest)[: boxes[row].size - int(hidden[row].sum())]] = True
    return torch.from_numpy(boxes), torch.from_numpy(hidden.reshape(-1, *cells))


def _sides(
    cells: Sequence[int], generator: np.random.Generator, share: tuple[float, float], aspect: float
) -> np.ndarray:
    """Sides of a random box, in cells per axis."""
    import numpy as np

    stretch = np.exp(generator.uniform(-np.log(aspect), np.log(aspect), len(cells)))
    stretch /= stretch.prod() ** (1 / len(cells))
    side = (generator.uniform(*share) * prod(cells)) ** (1 / len(cells)) * stretch
    sides: np.ndarray = np.clip(np.rint(side), 1, cells).astype(int)
    return sides


def _refuse_boxes(share: tuple[float, float], aspect: float) -> None:
    """Refuses boxes that cannot be drawn."""
    if not 0.0 < share[0] <= share[1] <= 1.0 or aspect < 1.0:
        message = f"boxes need 0 < share[0] <= share[1] <= 1 and aspect >= 1, got share {share} and aspect {aspect}"
        raise UserError(message)


def at_resolution(hidden: Bool[Tensor, "B *cells"], shape: Sequence[int]) -> Bool[Tensor, "B *shape"]:
    """The mask at another resolution of the same field of view.

    Along a finer axis, cells are repeated. Along a coarser axis, a position is hidden only if all of its cells are.

    >>> import torch
    >>> at_resolution(torch.tensor([[True, False, True, True]]), (2,))
    tensor([[False,  True]])

    Args:
        hidden: Mask over cells.
        shape: Positions per axis, a multiple or a whole fraction of the cells on every axis.

    Raises:
        UserError: The resolutions do not nest on some axis.
    """
    cells, shape = tuple(hidden.shape[1:]), tuple(shape)
    if cells == shape:
        return hidden
    if len(cells) != len(shape) or any(max(a, b) % min(a, b) for a, b in zip(cells, shape, strict=True)):
        message = (
            f"a mask of {cells} cells does not nest with {shape} positions: each axis needs a multiple or a whole "
            f"fraction of its cells; choose a size that the strides and the mask's cells divide"
        )
        raise UserError(message)
    batch, axes = len(hidden), range(len(cells))
    coarse = tuple(min(a, b) for a, b in zip(cells, shape, strict=True))
    if coarse != cells:
        children = [side for axis in axes for side in (coarse[axis], cells[axis] // coarse[axis])]
        hidden = hidden.reshape(batch, *children).all(dim=tuple(2 + 2 * axis for axis in axes))
    if coarse != shape:
        repeats = [side for axis in axes for side in (coarse[axis], shape[axis] // coarse[axis])]
        single = hidden.reshape(batch, *(side for axis in axes for side in (coarse[axis], 1)))
        hidden = single.expand(batch, *repeats).reshape(batch, *shape)
    return hidden
