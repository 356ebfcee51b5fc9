"""Masked twins: layers that return exact zeros at hidden positions inside ``visible``, and are dense outside it.

The class of a twin derives from that of its dense layer, so that parameters, buffers, state-dict keys and
``isinstance`` do not change. :mod:`medssl.nn.sparse` describes each kind of layer and inserts the twins.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from medssl.nn.visibility import Centered, Masked, center
from medssl.ops.collectives import world_size
from medssl.types import UserError

if TYPE_CHECKING:
    from medssl.nn.visibility import Frame


class Rehidden(Masked):
    """Twin of a layer whose output only needs zeros at hidden positions; channels first."""

    def forward(self, x: Tensor) -> Tensor:
        """Runs the dense layer, then hides."""
        y: Tensor = super().forward(x)
        frame = self.frame_for(y)
        return y if frame is None else frame.hide(y)


class MaskedConvolution(Masked):
    """Twin of convolutions: like ``Rehidden``, in place."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolves densely, then hides."""
        y: Tensor = super().forward(x)
        frame = self.frame_for(y)
        return y if frame is None else frame.hide_(y)


class RehiddenLast(Masked):
    """Like ``Rehidden``, channels last."""

    def forward(self, x: Tensor) -> Tensor:
        """Runs the dense layer, then hides."""
        y: Tensor = super().forward(x)
        frame = self.frame_for(y)
        return y if frame is None else frame.hide(y, channel_last=True)


class MaskedBatchNorm(Masked, _BatchNorm):
    """Batch norm over visible positions of the whole batch and of all processes (also outside ``visible``).

    With fewer than two visible positions, the running statistics do not change.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes by the statistics of the visible positions, or by the running ones in evaluation mode.

        Raises:
            UserError: The batch has one crop with one position, so that the variance is 0.
        """
        frame = self.frame_for(x)
        training = self.training or self.running_mean is None
        if not training or (frame is None and world_size() == 1):
            if training and len(x) * x.shape[2:].numel() == 1:
                message = (
                    "batch norm of one crop whose coarsest map has one position: set training.batch_size to 2 or more "
                    "(training.accumulate does not help), or take a larger view"
                )
                raise UserError(message)
            y: Tensor = super().forward(x)
            return y if frame is None else frame.hide(y)
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        hidden = None if frame is None else frame.hidden(x)
        statistics = center(x, hidden, (0, *range(2, x.ndim)), across_processes=True)
        if self.training and self.running_mean is not None:
            self._follow(statistics)
        return _affine(self, statistics, frame, x)

    @torch.no_grad()
    def _follow(self, statistics: Centered) -> None:
        """Updates the running statistics without marking them as changed for a later backward pass."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        count = statistics.count.flatten()
        has_variance = count > 1
        self.num_batches_tracked.data.add_(has_variance[0].long())
        momentum = 1.0 / self.num_batches_tracked.clamp(min=1) if self.momentum is None else self.momentum
        unbiased = statistics.variance.flatten() * count / (count - 1).clamp(min=1)
        for running, value in ((self.running_mean, statistics.mean.flatten()), (self.running_var, unbiased)):
            running.data.copy_(running + torch.where(has_variance, (value - running) * momentum, 0.0))


class MaskedInstanceNorm(Masked, _InstanceNorm):
    """Instance norm over the visible positions of each sample."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes each channel of each sample.

        Raises:
            UserError: There is only one position, so that the variance is 0.
        """
        frame = self.frame_for(x)
        if frame is None:
            if x.shape[2:].numel() == 1:
                message = "the coarsest map has one position, too few for instance norm: larger views, or norm batch"
                raise UserError(message)
            y: Tensor = super().forward(x)
            return y
        return _affine(self, center(x, frame.hidden(x), range(2, x.ndim)), frame, x)


class MaskedGroupNorm(Masked, nn.GroupNorm):
    """Group norm over the visible positions of each sample."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes each group of channels of each sample."""
        frame = self.frame_for(x)
        if frame is None:
            y: Tensor = super().forward(x)
            return y
        groups = x.reshape(len(x), self.num_groups, -1, *x.shape[2:])
        statistics = center(groups, frame.hidden(x).unsqueeze(1), range(2, groups.ndim))
        centered, variance = statistics.centered.flatten(1, 2), statistics.variance.flatten(1, 2)
        variance = variance.repeat_interleave(x.shape[1] // self.num_groups, dim=1)
        return _affine(self, replace(statistics, centered=centered, variance=variance), frame, x)


class MaskedMaxPool(Masked):
    """Maximum over the visible positions of each window; 0 for windows without one."""

    def forward(self, x: Tensor) -> Tensor:
        """Pools as if hidden positions were minus infinity."""
        frame = self.frame_for(x)
        if frame is None:
            y: Tensor = super().forward(x)
            return y
        y = super().forward(x.masked_fill(frame.hidden(x), -torch.inf))
        return y.masked_fill(frame.hidden(y) | y.isneginf(), 0)


class MaskedAvgPool(Masked):
    """Mean over the visible positions of each window; 0 for windows without one."""

    def forward(self, x: Tensor) -> Tensor:
        """Pools, then divides by the visible share of each window."""
        frame = self.frame_for(x)
        if frame is None:
            dense: Tensor = super().forward(x)
            return dense
        hidden = frame.hidden(x)
        visible = (~hidden).to(x.dtype)
        visible_weight, full_weight = super().forward(visible), super().forward(torch.ones_like(visible))
        y: Tensor = super().forward(x.masked_fill(hidden, 0))
        return frame.hide(y * torch.where(visible_weight > 0, full_weight / visible_weight, 0.0).to(x.dtype))


def _affine(
    layer: MaskedBatchNorm | MaskedInstanceNorm | MaskedGroupNorm, s: Centered, frame: Frame | None, x: Tensor
) -> Tensor:
    """Divides by the deviation, applies the layer's weight and bias, hides, and converts to the type of ``x``."""
    shape = (1, -1, *(1,) * (x.ndim - 2))
    scale = (s.variance + layer.eps).rsqrt()
    if layer.affine:
        scale = scale * layer.weight.reshape(shape)
        y = torch.addcmul(layer.bias.reshape(shape).to(scale.dtype), s.centered, scale)
    else:
        y = s.centered * scale
    return (y if frame is None else frame.hide_(y)).to(x.dtype)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over channels per position, channels first: [B, C, *s]."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes every position."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class MaskedConv1d(MaskedConvolution, nn.Conv1d):
    """Twin of ``nn.Conv1d``."""


class MaskedConv2d(MaskedConvolution, nn.Conv2d):
    """Twin of ``nn.Conv2d``."""


class MaskedConv3d(MaskedConvolution, nn.Conv3d):
    """Twin of ``nn.Conv3d``."""


class MaskedBatchNorm1d(MaskedBatchNorm, nn.BatchNorm1d):
    """Twin of ``nn.BatchNorm1d``."""


class MaskedBatchNorm2d(MaskedBatchNorm, nn.BatchNorm2d):
    """Twin of ``nn.BatchNorm2d``."""


class MaskedBatchNorm3d(MaskedBatchNorm, nn.BatchNorm3d):
    """Twin of ``nn.BatchNorm3d``."""


class MaskedInstanceNorm1d(MaskedInstanceNorm, nn.InstanceNorm1d):
    """Twin of ``nn.InstanceNorm1d``."""


class MaskedInstanceNorm2d(MaskedInstanceNorm, nn.InstanceNorm2d):
    """Twin of ``nn.InstanceNorm2d``."""


class MaskedInstanceNorm3d(MaskedInstanceNorm, nn.InstanceNorm3d):
    """Twin of ``nn.InstanceNorm3d``."""


class MaskedMaxPool1d(MaskedMaxPool, nn.MaxPool1d):
    """Twin of ``nn.MaxPool1d``."""


class MaskedMaxPool2d(MaskedMaxPool, nn.MaxPool2d):
    """Twin of ``nn.MaxPool2d``."""


class MaskedMaxPool3d(MaskedMaxPool, nn.MaxPool3d):
    """Twin of ``nn.MaxPool3d``."""


class MaskedAdaptiveMaxPool1d(MaskedMaxPool, nn.AdaptiveMaxPool1d):
    """Twin of ``nn.AdaptiveMaxPool1d``."""


class MaskedAdaptiveMaxPool2d(MaskedMaxPool, nn.AdaptiveMaxPool2d):
    """Twin of ``nn.AdaptiveMaxPool2d``."""


class MaskedAdaptiveMaxPool3d(MaskedMaxPool, nn.AdaptiveMaxPool3d):
    """Twin of ``nn.AdaptiveMaxPool3d``."""


class MaskedAvgPool1d(MaskedAvgPool, nn.AvgPool1d):
    """Twin of ``nn.AvgPool1d``."""


class MaskedAvgPool2d(MaskedAvgPool, nn.AvgPool2d):
    """Twin of ``nn.AvgPool2d``."""


class MaskedAvgPool3d(MaskedAvgPool, nn.AvgPool3d):
    """Twin of ``nn.AvgPool3d``."""


class MaskedAdaptiveAvgPool1d(MaskedAvgPool, nn.AdaptiveAvgPool1d):
    """Twin of ``nn.AdaptiveAvgPool1d``."""


class MaskedAdaptiveAvgPool2d(MaskedAvgPool, nn.AdaptiveAvgPool2d):
    """Twin of ``nn.AdaptiveAvgPool2d``."""


class MaskedAdaptiveAvgPool3d(MaskedAvgPool, nn.AdaptiveAvgPool3d):
    """Twin of ``nn.AdaptiveAvgPool3d``."""


class MaskedLinear(RehiddenLast, nn.Linear):
    """Twin of ``nn.Linear``."""


class MaskedLayerNorm(RehiddenLast, nn.LayerNorm):
    """Twin of ``nn.LayerNorm``."""


class MaskedSigmoid(Rehidden, nn.Sigmoid):
    """Twin of ``nn.Sigmoid``."""


class MaskedHardsigmoid(Rehidden, nn.Hardsigmoid):
    """Twin of ``nn.Hardsigmoid``."""


class MaskedSoftplus(Rehidden, nn.Softplus):
    """Twin of ``nn.Softplus``."""


class MaskedChannelNorm(Rehidden, ChannelNorm):
    """Twin of :class:`ChannelNorm`."""
