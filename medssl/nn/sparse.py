"""Masked twins of dense layers: they let a convolutional network ignore the hidden cells of its input.

Parameters, buffers and state-dict keys are those of the dense network. Outside ``visible`` a twin behaves as its dense
layer. Inside, every twin returns exact zeros at hidden positions, and takes statistics over visible positions:

=========================  =============================================================================================
layer                      inside ``visible``
=========================  =============================================================================================
convolution, linear        computed densely, then hidden positions are set to zero (which also removes the bias there)
batch norm                 over visible positions of the whole batch, of all processes; running statistics the same
instance, group norm       over visible positions of each sample; 0 or 1 visible positions give the bias alone
layer norm over channels   per position, then hidden positions are set to zero
maximum pooling            over visible positions, also of negative features
average pooling            over visible positions: what is hidden is missing, not zero; equal to dense pooling where a
                           window is all visible, and to pooling then masking wherever windows lie inside cells
sigmoid-like gates         hidden positions set to zero
=========================  =============================================================================================

:func:`medssl.ops.masking.at_resolution` defines which positions of a layer's output are hidden. If a map is coarser
than the mask, a visible position may mix visible cells with zeros of hidden ones, as at the border of every cell.

Reference: Tian et al., Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling, ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from medssl.nn import twins as t
from medssl.nn.drop_path import DropPath
from medssl.nn.recomputation import checkpoint
from medssl.nn.twins import ChannelNorm
from medssl.nn.visibility import Context, Masked, visible, visible_mean
from medssl.types import UserError

__all__ = ["NEUTRAL", "TWINS", "ChannelNorm", "checkpoint", "sparsify", "visible", "visible_mean"]

TWINS: Mapping[type[nn.Module], type[nn.Module]] = MappingProxyType(
    {
        nn.Conv1d: t.MaskedConv1d,
        nn.Conv2d: t.MaskedConv2d,
        nn.Conv3d: t.MaskedConv3d,
        nn.BatchNorm1d: t.MaskedBatchNorm1d,
        nn.BatchNorm2d: t.MaskedBatchNorm2d,
        nn.BatchNorm3d: t.MaskedBatchNorm3d,
        nn.InstanceNorm1d: t.MaskedInstanceNorm1d,
        nn.InstanceNorm2d: t.MaskedInstanceNorm2d,
        nn.InstanceNorm3d: t.MaskedInstanceNorm3d,
        nn.MaxPool1d: t.MaskedMaxPool1d,
        nn.MaxPool2d: t.MaskedMaxPool2d,
        nn.MaxPool3d: t.MaskedMaxPool3d,
        nn.AdaptiveMaxPool1d: t.MaskedAdaptiveMaxPool1d,
        nn.AdaptiveMaxPool2d: t.MaskedAdaptiveMaxPool2d,
        nn.AdaptiveMaxPool3d: t.MaskedAdaptiveMaxPool3d,
        nn.AvgPool1d: t.MaskedAvgPool1d,
        nn.AvgPool2d: t.MaskedAvgPool2d,
        nn.AvgPool3d: t.MaskedAvgPool3d,
        nn.AdaptiveAvgPool1d: t.MaskedAdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d: t.MaskedAdaptiveAvgPool2d,
        nn.AdaptiveAvgPool3d: t.MaskedAdaptiveAvgPool3d,
        nn.Linear: t.MaskedLinear,
        nn.LayerNorm: t.MaskedLayerNorm,
        nn.Sigmoid: t.MaskedSigmoid,
        nn.Hardsigmoid: t.MaskedHardsigmoid,
        nn.Softplus: t.MaskedSoftplus,
        nn.GroupNorm: t.MaskedGroupNorm,
        ChannelNorm: t.MaskedChannelNorm,
    }
)
"""The twin of each dense layer."""

NEUTRAL: frozenset[type[nn.Module]] = frozenset(
    {
        *(nn.Identity, nn.Flatten, nn.Sequential, nn.ModuleList, nn.ModuleDict),
        *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, DropPath),
        *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
        *(nn.Tanh, nn.Hardswish, nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink),
    }
)
"""Layers that need no twin: they map zeros to zeros, and treat every position independently."""


def sparsify(
    module: nn.Module, *, twins: Mapping[type[nn.Module], type[nn.Module]] | None = None, strict: bool = False
) -> nn.Module:
    """Replaces the layers of a module by their masked twins, in place. State-dict keys do not change.

    Args:
        module: A module, also one that was sparsified before. On error it is unchanged.
        twins: Further twins by the exact class of the dense layer. Each twin derives from :class:`Masked` and from that
            class. A class that is mapped to itself stays: it maps zeros to zeros and treats positions independently.
        strict: Also refuse unknown classes that only contain known layers. Their ``forward`` could mix positions, by a
            mean or attention, which cannot be detected. By default they are trusted.

    Returns:
        The same module.

    Raises:
        UserError: A layer has no twin; the message names it.
    """
    twin_of = {**{kind: kind for kind in NEUTRAL}, **TWINS, **(twins or {})}
    without_twin = [
        f"{name or 'the module'} ({type(layer).__name__}: {reason})"
        for name, layer in module.named_modules()
        if (reason := _refusal(layer, twin_of, strict=strict))
    ]
    if without_twin:
        more = f" and {len(without_twin) - 3} more" if len(without_twin) > 3 else ""
        message = (
            f"no masked twin for {', '.join(without_twin[:3])}{more}: choose another layer, or pass a twin of its "
            f"class as sparsify(twins={{...}})"
        )
        raise UserError(message)
    context = Context()
    for layer in module.modules():
        layer.__class__ = twin_of.get(type(layer), type(layer))
        if isinstance(layer, Masked):
            layer.visibility = context
    return module


def _refusal(layer: nn.Module, twin_of: Mapping[type[nn.Module], type[nn.Module]], *, strict: bool) -> str:
    """Why a layer cannot be masked; "" if it can."""
    if getattr(layer, "return_indices", False):
        return "returns indices"
    if isinstance(layer, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d) and layer.track_running_stats:
        return "tracks running statistics"
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) > 1:
        return "normalizes over positions"
    if isinstance(layer, Masked) or type(layer) in twin_of:
        return ""
    if any(True for _ in layer.parameters(recurse=False)) or any(True for _ in layer.buffers(recurse=False)):
        return "has parameters or buffers"
    trusted = not strict and any(True for _ in layer.children())
    return "" if trusted else "is not known to keep zeros"
