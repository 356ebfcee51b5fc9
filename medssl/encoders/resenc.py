"""Residual encoder for images and volumes. Its weights fit nnU-Net's networks.

The network is that of nnU-Net's residual presets (Isensee et al., nnU-Net Revisited, MICCAI 2024), built by the package
dynamic-network-architectures. Masked twins replace its layers; all state-dict keys stay.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from medssl.encoders.base import Encoder
from medssl.nn.sparse import checkpoint, sparsify, visible, visible_mean
from medssl.types import Features, MaskMode, UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class ResEnc(Encoder):
    """Residual encoder of nnU-Net.

    ``maps`` are the outputs of the stages, fine to coarse. ``pooled`` is the mean of the last map over visible
    positions. State-dict keys are ``encoder.stem...`` and ``encoder.stages...``, as in nnU-Net's
    ``ResidualEncoderUNet``.

    Args:
        in_channels: Channels of the image.
        ndim: Spatial axes, 2 or 3.
        channels: Channels of each stage.
        strides: Stride of each stage per axis of the stored array, not accumulated; None takes 1, then 2 everywhere.
        blocks: Residual blocks of each stage.
        kernels: Kernel size of each stage per axis; None takes 3 everywhere.
        norm: "instance" (as nnU-Net) or "batch" (statistics over the batches of all processes).
        dropout: Probability of dropping a channel after the first convolution of a block, 0 to below 1.

    Raises:
        UserError: The lists have different lengths, or a value is out of range.
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        ndim: int = 3,
        channels: Sequence[int] = (32, 64, 128, 256, 320, 320),
        strides: Sequence[Sequence[int]] | None = None,
        blocks: Sequence[int] = (1, 3, 4, 6, 6, 6),
        kernels: Sequence[Sequence[int]] | None = None,
        norm: Literal["instance", "batch"] = "instance",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        strides = strides or [(1,) * ndim, *[(2,) * ndim] * (len(channels) - 1)]
        kernels = kernels or [(3,) * ndim] * len(channels)
        _refuse_misfits(ndim, len(channels), blocks, {"strides": strides, "kernels": kernels}, norm)
        self.ndims = frozenset({ndim})
        self.in_channels = in_channels
        self.channels = tuple(channels)
        self.strides = tuple(
            tuple(map(prod, zip(*strides[: stage + 1], strict=True))) for stage in range(len(channels))
        )
        self.mask_modes: frozenset[MaskMode] = frozenset({"sparse"})
        total = self.strides[-1]
        self.mask_cell = tuple(min(16, stride) for stride in total) if ndim == 3 else total
        self.encoder = sparsify(_network(self, ndim, strides, blocks, kernels, norm, dropout))

    def forward(
        self,
        image: Float[Tensor, "B C *s"],
        hidden: Bool[Tensor, "B *cells"] | None = None,
        mode: MaskMode | None = None,
    ) -> Features:
        """Encodes an image; with ``hidden``, sparsely.

        Args:
            image: Images; every axis is a multiple of the total stride.
            hidden: True where a cell is hidden.
            mode: "sparse" or None.

        Raises:
            UserError: The image or the mask does not fit.
        """
        x = self.checked(image, hidden, mode)
        network: Any = self.encoder
        maps = []
        with visible(network, hidden):
            for stage in self.parts():
                x = checkpoint(stage, x) if self.recompute and torch.is_grad_enabled() else stage(x)
                maps.append(x)
        return Features(maps=tuple(maps[1:]), pooled=visible_mean(x, hidden))

    def parts(self) -> list[nn.Module]:
        """The stem and the stages."""
        network: Any = self.encoder
        return [network.stem, *network.stages]

    def layers(self) -> dict[str, int]:
        """Number of the layer of each parameter: the stem is 0, each residual block is one more."""
        blocks: dict[str, int] = {}
        layer_of = {}
        for name, _ in self.named_parameters():
            block = re.match(r"encoder\.stages\.\d+\.blocks\.\d+\.", name)
            layer_of[name] = blocks.setdefault(block.group(), len(blocks) + 1) if block else 0
        return layer_of


def _network(
    encoder: ResEnc,
    ndim: int,
    strides: Sequence[Sequence[int]],
    blocks: Sequence[int],
    kernels: Sequence[Sequence[int]],
    norm: str,
    dropout: float,
) -> nn.Module:
    """Builds the dense network with the arguments and the initialization of nnU-Net's presets."""
    from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
    from dynamic_network_architectures.initialization.weight_init import InitWeights_He, init_last_bn_before_add_to_0

    volume = ndim == 3
    instance, batch = (nn.InstanceNorm3d, nn.BatchNorm3d) if volume else (nn.InstanceNorm2d, nn.BatchNorm2d)
    network: nn.Module = ResidualEncoder(
        encoder.in_channels,
        len(encoder.channels),
        list(encoder.channels),
        nn.Conv3d if volume else nn.Conv2d,
        [list(kernel) for kernel in kernels],
        [list(stride) for stride in strides],
        list(blocks),
        conv_bias=True,
        norm_op=instance if norm == "instance" else batch,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        dropout_op=(nn.Dropout3d if volume else nn.Dropout2d) if dropout > 0 else None,
        dropout_op_kwargs={"p": dropout} if dropout > 0 else None,
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        return_skips=True,
    )
    network.apply(InitWeights_He(1e-2))
    network.apply(init_last_bn_before_add_to_0)
    return network


def _refuse_misfits(
    ndim: int, stages: int, blocks: Sequence[int], per_axis: dict[str, Sequence[Sequence[int]]], norm: str
) -> None:
    """Refuses arguments that do not fit each other."""
    if ndim not in (2, 3):
        message = "must be 2 or 3"
        raise UserError(message, key="ndim", got=ndim)
    if norm not in ("instance", "batch"):
        message = 'must be "instance" or "batch"'
        raise UserError(message, key="norm", got=norm)
    for name, values in {"blocks": blocks, **per_axis}.items():
        if len(values) != stages:
            message = f"{name} has {len(values)} entries, channels has {stages}: give one for each stage"
            raise UserError(message)
    for name, values in per_axis.items():
        for value in values:
            if len(value) != ndim or min(value) < 1:
                message = f"{name} holds {list(value)}: expected {ndim} numbers of at least 1, one for each axis"
                raise UserError(message)
            if name == "kernels" and any(side % 2 == 0 for side in value):
                message = f"kernels holds {list(value)}: expected odd sizes"
                raise UserError(message)
