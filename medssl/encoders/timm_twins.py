"""Masked twins of timm's layers. This module imports timm at its top, so import it inside functions."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import timm.layers as tl
import torch
from timm.layers.grn import GlobalResponseNorm
from timm.models import convnext, regnet, resnet
from torch import Tensor, nn

from medssl.nn.twins import MaskedBatchNorm, MaskedBatchNorm2d, MaskedGroupNorm, Rehidden, RehiddenLast
from medssl.nn.visibility import Masked, pooled


class MaskedBatchNormAct2d(tl.BatchNormAct2d, MaskedBatchNorm2d):  # type: ignore[misc]
    """Twin of timm's batch norm with activation: statistics over visible positions, then dropout and activation."""

    act: nn.Module
    drop: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes, applies dropout and activation, and sets hidden positions to zero."""
        y: Tensor = self.act(self.drop(MaskedBatchNorm.forward(self, x)))
        frame = self.frame_for(y)
        return y if frame is None else frame.hide(y)


class MaskedTimmGroupNorm(MaskedGroupNorm, tl.GroupNorm):  # type: ignore[misc]
    """Twin of timm's group norm."""


class MaskedTimmGroupNorm1(MaskedGroupNorm, tl.GroupNorm1):  # type: ignore[misc]
    """Twin of timm's group norm with one group."""


class MaskedTimmLayerNorm(RehiddenLast, tl.LayerNorm):  # type: ignore[misc]
    """Twin of timm's layer norm, channels last."""


class MaskedTimmLayerNorm2d(Rehidden, tl.LayerNorm2d):  # type: ignore[misc]
    """Twin of timm's layer norm, channels first."""


class MaskedTimmSigmoid(Rehidden, tl.Sigmoid):  # type: ignore[misc]
    """Twin of timm's sigmoid."""


class MaskedTimmHardSigmoid(Rehidden, tl.HardSigmoid):  # type: ignore[misc]
    """Twin of timm's hard sigmoid."""


class MaskedGlobalResponseNorm(Masked, GlobalResponseNorm):  # type: ignore[misc]
    """Twin of the global response norm of ConvNeXt V2. Hidden zeros do not change the norms; the bias is hidden."""

    channel_dim: int

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes and hides."""
        y: Tensor = super().forward(x)
        frame = self.frame_for(y)
        return y if frame is None else frame.hide(y, channel_last=self.channel_dim == -1)


class _MaskedGate(Masked):
    """Squeeze and excitation whose pooling uses visible positions only."""

    add_maxpool: bool
    gate: nn.Module

    def squeeze(self, x: Tensor) -> Tensor | None:
        """Mean over visible positions (with ``add_maxpool`` averaged with the maximum); None where all are visible."""
        frame = self.frame_for(x)
        if frame is None:
            return None
        hidden = frame.hidden(x)
        mean = pooled(x, hidden)[:, :, None, None]
        if not self.add_maxpool:
            return mean
        highest = x.masked_fill(hidden, -torch.inf).amax((2, 3), keepdim=True)
        return 0.5 * mean + 0.5 * highest.masked_fill(highest.isneginf(), 0)


class MaskedSEModule(_MaskedGate, tl.SEModule):  # type: ignore[misc]
    """Twin of timm's squeeze and excitation."""

    fc1: nn.Module
    bn: nn.Module
    act: nn.Module
    fc2: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels."""
        squeezed = self.squeeze(x)
        if squeezed is None:
            dense: Tensor = super().forward(x)
            return dense
        y: Tensor = x * self.gate(self.fc2(self.act(self.bn(self.fc1(squeezed)))))
        return y


class MaskedEffectiveSEModule(_MaskedGate, tl.EffectiveSEModule):  # type: ignore[misc]
    """Twin of timm's effective squeeze and excitation."""

    fc: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels."""
        squeezed = self.squeeze(x)
        if squeezed is None:
            dense: Tensor = super().forward(x)
            return dense
        y: Tensor = x * self.gate(self.fc(squeezed))
        return y


_NEUTRAL = (
    *(tl.DropPath, tl.LayerScale, tl.LayerScale2d),  # per channel or per sample
    *(tl.Mlp, tl.GlobalResponseNormMlp, tl.ConvNormAct, tl.SelectAdaptivePool2d),  # no more than their layers
    *(resnet.ResNet, resnet.BasicBlock, resnet.Bottleneck),
    *(regnet.RegNet, regnet.RegStage, regnet.Bottleneck),
    *(convnext.ConvNeXt, convnext.ConvNeXtStage, convnext.ConvNeXtBlock, convnext.Downsample),
    *(tl.activations.Swish, tl.activations.Mish, tl.activations.Tanh, tl.activations.HardSwish),
    *(tl.activations.HardMish, tl.activations.PReLU, tl.activations.GELU, tl.activations.GELUTanh),
    tl.activations.QuickGELU,
)

TIMM_TWINS: Mapping[type[nn.Module], type[nn.Module]] = MappingProxyType(
    {
        **{kind: kind for kind in _NEUTRAL},
        tl.BatchNormAct2d: MaskedBatchNormAct2d,
        tl.GroupNorm: MaskedTimmGroupNorm,
        tl.GroupNorm1: MaskedTimmGroupNorm1,
        tl.LayerNorm: MaskedTimmLayerNorm,
        tl.LayerNorm2d: MaskedTimmLayerNorm2d,
        tl.Sigmoid: MaskedTimmSigmoid,
        tl.HardSigmoid: MaskedTimmHardSigmoid,
        GlobalResponseNorm: MaskedGlobalResponseNorm,
        tl.SEModule: MaskedSEModule,
        tl.EffectiveSEModule: MaskedEffectiveSEModule,
    }
)
