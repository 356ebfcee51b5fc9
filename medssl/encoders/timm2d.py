"""2D models of timm as encoders; models whose layers all have masked twins can also run sparsely."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medssl.encoders.base import Encoder
from medssl.nn.drop_path import DropPath
from medssl.nn.sparse import checkpoint, sparsify, visible, visible_mean
from medssl.types import Features, MaskMode, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jaxtyping import Bool, Float
    from torch import Tensor


STEMS = ("stem", "act1")  # modules of timm's RegNets and ResNets that compute a map before the first stage


class Timm2d(Encoder):
    """A 2D model of timm, chosen by name.

    ``pooled`` is the mean of the last map over visible positions. State-dict keys are timm's keys with the prefix
    ``model.``, without the classifier. ResNet, ConvNeXt and RegNet models whose layers all have masked twins support
    the mask mode "sparse". Other models support no mask.

    Args:
        model: Name of the model in timm.
        in_channels: Channels of the image; pretrained weights for another number are adapted.
        pretrained: Load timm's weights from its local cache, or download them. Nothing is downloaded otherwise.
        drop_path: Probability of dropping a residual branch, 0 to below 1, for models that support it.

    Raises:
        UserError: timm has no such model, or the model returns no feature maps.
    """

    def __init__(
        self,
        model: str,
        *,
        in_channels: int = 3,
        pretrained: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.ndims = frozenset({2})
        self.in_channels = in_channels
        self.model = _create(model, in_channels, pretrained=pretrained, drop_path=drop_path)
        info = list(self.model.feature_info)  # type: ignore[arg-type]
        self.channels = tuple(int(entry["num_chs"]) for entry in info)
        self.strides = tuple((int(entry["reduction"]),) * 2 for entry in info)
        self.stem_maps = sum(str(entry["module"]).split(".")[0] in STEMS for entry in info)
        self.mask_cell = self.strides[-1]
        self.mask_modes: frozenset[MaskMode] = frozenset()
        try:
            sparsify(self.model, twins=_twins(), strict=True)
            self.mask_modes = frozenset({"sparse"})
        except UserError as error:
            self.unmasked_because = str(error)

    def forward(
        self,
        image: Float[Tensor, "B C H W"],
        hidden: Bool[Tensor, "B h w"] | None = None,
        mode: MaskMode | None = None,
    ) -> Features:
        """Encodes an image; with ``hidden``, sparsely.

        Args:
            image: Images; both axes are multiples of the total stride.
            hidden: True where a cell is hidden.
            mode: "sparse" or None.

        Raises:
            UserError: The image or the mask does not fit, or a layer has no masked twin (the message names it).
        """
        x = self.checked(image, hidden, mode)
        network: Any = self.model
        with visible(network, hidden), self._recomputing():
            maps = network.forward_intermediates(x, intermediates_only=True)
        return Features(maps=tuple(maps), pooled=visible_mean(maps[-1], hidden))

    def parts(self) -> list[nn.Module]:
        """The stages: modules with weights whose outputs are the maps."""
        model: Any = self.model
        stages = [self.model.get_submodule(str(entry["module"])) for entry in model.feature_info]
        return [stage for stage in stages if next(stage.parameters(), None) is not None]

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Recomputes the stages that are called inside, as ``recompute`` asks for."""
        stages = self.parts() if self.recompute and torch.is_grad_enabled() else []
        for stage in stages:
            stage.forward = _recomputed(stage)
        try:
            yield
        finally:
            for stage in stages:
                del stage.forward

    def layers(self) -> dict[str, int]:
        """Number of the layer of each parameter, as timm groups them for layer-wise decay."""
        from timm.models import group_parameters

        model: Any = self.model
        matcher = model.group_matcher(coarse=False)
        groups: dict[int, list[str]] = group_parameters(model, matcher)
        order = {group: layer for layer, group in enumerate(sorted(groups))}
        return {f"model.{name}": order[group] for group, names in groups.items() for name in names}


def _recomputed(stage: nn.Module) -> Callable[..., Any]:
    """A forward that is computed again in the backward pass, for a stage that has its own forward outside of it."""

    def forward(*args: Any) -> Any:
        del stage.forward
        try:
            return checkpoint(stage, *args)
        finally:
            stage.forward = forward

    return forward


def _create(name: str, in_channels: int, *, pretrained: bool, drop_path: float) -> nn.Module:
    """Creates the model without its classifier, last norm and other layers that its maps do not pass through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # timm's own use of torch.jit: nothing that a user can change
        import timm

    if not timm.is_model(name):
        similar_names = ", ".join(get_close_matches(name, timm.list_models(), 5))
        message = f'timm has no model "{name}"{": similar names are " + similar_names if similar_names else ""}'
        raise UserError(message)
    arguments: dict[str, Any] = {"pretrained": pretrained, "in_chans": in_channels, "num_classes": 0}
    arguments |= {"drop_path_rate": drop_path} if drop_path > 0 else {}
    try:
        try:  # transformers that can: their learned table of positions is interpolated to the image
            model: Any = timm.create_model(name, dynamic_img_size=True, **arguments)
        except TypeError:
            model = timm.create_model(name, **arguments)
    except TypeError as error:
        message = f'timm\'s model "{name}" does not take the arguments in_channels={in_channels}, drop_path={drop_path}'
        raise UserError(message) from error
    if not hasattr(model, "forward_intermediates") or not hasattr(model, "prune_intermediate_layers"):
        message = f'timm\'s model "{name}" gives no feature maps by forward_intermediates: choose another model'
        raise UserError(message)
    model.prune_intermediate_layers(len(model.feature_info), prune_norm=True, prune_head=True)
    if hasattr(model, "head"):
        model.head = nn.Identity()
    key_drop_path(model, timm.layers.DropPath)
    return model  # type: ignore[no-any-return]


def key_drop_path(model: nn.Module, kind: type[nn.Module]) -> None:
    """Replaces timm's layers of stochastic depth, which draw by the row of a batch, by those that draw by sample."""
    for part in list(model.modules()):
        for name, child in part.named_children():
            if isinstance(child, kind):
                setattr(part, name, DropPath(float(child.drop_prob)))  # type: ignore[arg-type]


def _twins() -> dict[type[nn.Module], type[nn.Module]]:
    """Masked twins of timm's layers; imports timm only here."""
    from medssl.encoders.timm_twins import TIMM_TWINS

    return dict(TIMM_TWINS)
