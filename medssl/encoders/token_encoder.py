"""Base class of transformers over patches: hidden patches are left out or filled, tokens become maps."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from medssl.encoders.base import Encoder
from medssl.nn.sparse import checkpoint
from medssl.nn.transformer import gather_tokens, visible_numbers
from medssl.ops.limits import expect
from medssl.ops.masking import at_resolution
from medssl.ops.patches import cells_of, patchify
from medssl.types import Features, MaskMode, UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

MAPS = 4  # as many depths as decoders for transformers look at


class TokenEncoder(Encoder):
    """Transformer over the patches of an image.

    ``tokens`` are the patch tokens after the last norm, in C order. ``maps`` are the patch tokens of up to four equally
    spaced depths, all at the stride of a patch; the last one is normalized. ``pooled`` is the mean of ``tokens`` or
    the class token. Tokens without a place (class and register tokens) stand before those of the patches.

    Args:
        in_channels: Channels of the image.
        patch: Voxels of a patch along each of the two or three axes. A patch is also the cell of a mask.
        width: Channels of a token.
        depth: Number of blocks.
        registers: Number of learned tokens without a place (Darcet et al., ICLR 2024).
        spacing_mm: Voxel spacing per axis, to measure positions in mm; None measures them in voxels. Set it where
            spacings differ between axes. Lengths are divided by the longest side of a patch, so that cubic patches
            have the coordinates 0, 1, 2, ...

    Attributes:
        inner: Where the blocks and the last norm are among the names of the parameters: "", or a name and a dot.

    Raises:
        UserError: Arguments that do not fit each other.
    """

    inner: ClassVar[str] = ""

    def __init__(
        self,
        in_channels: int = 1,
        *,
        patch: Sequence[int] = (8, 8, 8),
        width: int = 384,
        depth: int = 12,
        registers: int = 0,
        spacing_mm: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        _refuse_misfits(patch, registers, spacing_mm)
        self.ndims = frozenset({len(patch)})
        self.in_channels = in_channels
        self.patch = tuple(patch)
        expect(depth >= 1, "depth", depth, "at least 1")
        self.depth = depth
        self.depths = tuple(sorted({-(-depth * n // MAPS) for n in range(1, MAPS + 1)}))  # blocks done at each map
        self.channels = (width,) * len(self.depths)
        self.strides = (self.patch,) * len(self.depths)
        self.mask_modes: frozenset[MaskMode] = frozenset({"drop", "fill"})
        self.mask_cell = self.patch
        spacing = (1.0,) * len(patch) if spacing_mm is None else spacing_mm
        sides = [side * mm for side, mm in zip(patch, spacing, strict=True)]
        self.step = tuple(side / max(sides) for side in sides)
        self.mask_token = learned(1, width)

    @abstractmethod
    def embed(self, patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N C"]:
        """Maps rows of ``medssl.ops.patches.patchify`` to tokens."""

    @abstractmethod
    def positions(self, cells: Sequence[int]) -> Float[Tensor, "N C"]:
        """What is added to the token of each cell of a grid, in C order."""

    @property
    @abstractmethod
    def placeless(self) -> list[Tensor]:
        """Tokens [1, M, C] without a place, in their order."""

    @property
    def extra(self) -> int:
        """Number of tokens without a place, which stand before those of the patches."""
        return sum(token.shape[1] for token in self.placeless)

    @abstractmethod
    def normalize(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """The norm after the last block."""

    def layers(self) -> dict[str, int]:
        """Number of the layer of each parameter: patch embedding, tokens and table are 0, each block is one more.

        The last norm is missing: it counts as part of the head.
        """
        layers = {}
        for name, _ in self.named_parameters():
            block = re.match(re.escape(self.inner) + r"blocks\.(\d+)\.", name)
            if not name.startswith(f"{self.inner}norm."):
                layers[name] = int(block.group(1)) + 1 if block else 0
        return layers

    def rotations(self, cells: Sequence[int]) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]] | None:
        """Cosines and sines by which the cells of a grid turn queries and keys; None for a network without them."""
        del cells
        return None

    def pooled(self, placeless: Float[Tensor, "B M C"], tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B C"]:
        """Features of the whole image, from the tokens without a place and the normalized tokens of patches."""
        del placeless
        return tokens.mean(1)

    def forward(
        self,
        image: Float[Tensor, "B C *s"],
        hidden: Bool[Tensor, "B *cells"] | None = None,
        mode: MaskMode | None = None,
    ) -> Features:
        """Encodes an image.

        Args:
            image: Images; every axis is a multiple of the patch.
            hidden: True where a cell is hidden.
            mode: "drop" leaves hidden patches out: there are tokens of the visible patches only, and no maps. "fill"
                puts the mask token in their places.

        Raises:
            UserError: The image or the mask does not fit, or samples hide different numbers of patches in mode "drop".
        """
        x = self.checked(image, hidden, mode)
        cells = cells_of(x.shape[2:], self.patch)
        covered = torch.zeros(len(x), *cells, dtype=torch.bool, device=x.device)
        if hidden is not None:
            covered = at_resolution(hidden.to(x.device), cells)
        patches = patchify(x, self.patch)
        positions = self.positions(cells).expand(len(x), -1, -1)
        visible_cells = None
        if mode == "drop" and hidden is not None:
            visible_cells = visible_numbers(covered)
            patches, positions = gather_tokens(patches, visible_cells), gather_tokens(positions, visible_cells)
            covered = covered.flatten(1).gather(1, visible_cells)
        tokens = torch.where(covered.flatten(1)[..., None], self.mask_token, self.embed(patches)) + positions
        block_outputs = self._run(tokens, self._rotations(cells, visible_cells))
        outputs = [x[:, self.extra :] for x in block_outputs]
        outputs[-1] = self.normalize(outputs[-1])
        pooled = self.pooled(block_outputs[-1][:, : self.extra], outputs[-1])
        maps = () if visible_cells is not None else tuple(x.mT.reshape(len(x), -1, *cells) for x in outputs)
        return Features(maps=maps, pooled=pooled, tokens=outputs[-1], visible_cells=visible_cells)

    def _rotations(self, cells: Sequence[int], visible_cells: Tensor | None) -> tuple[Tensor, ...]:
        """Tables [B or 1, 1, N, D] for the tokens that are left; empty for a network without rotary positions."""
        tables = self.rotations(cells)
        if tables is None:
            return ()
        if visible_cells is None:
            return tuple(table[None, None] for table in tables)
        return tuple(table[visible_cells][:, None] for table in tables)

    def _run(self, tokens: Float[Tensor, "B N C"], rotations: tuple[Tensor, ...]) -> list[Float[Tensor, "B M C"]]:
        """Runs the blocks; returns all tokens (those without a place first) at the depths that become maps."""
        x = torch.cat((*(token.expand(len(tokens), -1, -1) for token in self.placeless), tokens), 1)
        block_outputs = []
        for depth, block in enumerate(self.parts(), 1):
            recomputing = self.recompute and torch.is_grad_enabled()
            x = checkpoint(block, x, *rotations) if recomputing else block(x, *rotations)
            if depth in self.depths:
                block_outputs.append(x)
        return block_outputs


def learned(count: int, width: int, std: float = 0.02) -> nn.Parameter:
    """Learned tokens [1, count, width] from a normal distribution."""
    return nn.Parameter(nn.init.normal_(torch.empty(1, count, width), std=std))


def _refuse_misfits(patch: Sequence[int], registers: int, spacing_mm: Sequence[float] | None) -> None:
    """Refuses arguments that do not fit each other."""
    spacing = patch if spacing_mm is None else spacing_mm
    for holds, message in (
        (len(patch) in (2, 3) and min(patch) >= 1, f"patch {list(patch)}: expected two or three numbers, 1 or more"),
        (registers >= 0, f"registers {registers}: expected 0 or more"),
        (
            len(spacing) == len(patch) and min(spacing) > 0,
            f"spacing_mm {list(spacing)}: expected {len(patch)} numbers above 0, one for each axis of the patch",
        ),
    ):
        if not holds:
            raise UserError(message)
