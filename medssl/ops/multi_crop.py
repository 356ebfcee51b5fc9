"""Several views of a sample in two sizes: two that show much of it, and small ones that show parts (multi-crop).

Reference: Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (SwAV), NeurIPS
2020, arXiv 2006.09882; with a teacher that gets the large views alone: Caron et al., DINO, ICCV 2021.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medssl.ops.limits import expect
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from medssl.types import View, ViewSpec

WHOLE = 2  # views that the teacher gets


def multi_crop(view: ViewSpec, local_view: ViewSpec | None, local_views: int) -> tuple[ViewSpec, ...]:
    """The views of a plan: two of the first kind, then ``local_views`` of the second.

    Args:
        view: How the two global views are cut and changed.
        local_view: How the local views are cut and changed; None has none.
        local_views: Number of local views, at least 0.

    Raises:
        UserError: A negative number, no local view to make several of, or another number of axes.
    """
    expect(local_views >= 0, "local_views", local_views, "at least 0")
    if local_view is None or local_views == 0:
        if local_views > 0:
            message = "there is no local_view to make them of"
            hint = "Give local_view, or set local_views to 0."
            raise UserError(message, key="local_views", got=local_views, hint=hint)
        return (view,) * WHOLE
    if len(local_view.size) != len(view.size):
        message = "has another number of axes than view"
        expected = f"{len(view.size)} sizes, as view has"
        raise UserError(message, key="local_view.size", got=list(local_view.size), expected=expected)
    return (*(view,) * WHOLE, *(local_view,) * local_views)


def by_size(views: Sequence[View]) -> list[Float[Tensor, "N C *s"]]:
    """Images of neighboring views of one size as one batch each; the rows of the first view first."""
    groups: list[list[Tensor]] = []
    for view in views:
        if groups and groups[-1][0].shape[2:] == view.image.shape[2:]:
            groups[-1].append(view.image)
        else:
            groups.append([view.image])
    return [torch.cat(images) for images in groups]


def pooled_of(
    encode: Callable[[Float[Tensor, "N C *s"]], Float[Tensor, "N D"]], views: Sequence[View]
) -> Float[Tensor, "N D"]:
    """Vectors of all views, with one pass for each size; the rows of the first view first.

    Args:
        encode: From images to one vector each.
        views: Views of the same samples.
    """
    return torch.cat([encode(images) for images in by_size(views)])
