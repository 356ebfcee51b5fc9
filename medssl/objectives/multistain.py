r"""Multistain: the same place of registered sections with other stains gets the same embedding, as whole and in parts.

Predicts: which crop of another stain shows the same place (MADELEINE, Jaume et al. 2024).
Encoders: any.

The stains of a case are groups of channels of one scan, the first of them the reference (hematoxylin and eosin). With
the encoder f of one stain, projections g and h, :math:`z^s = g(pooled f(x^s))`, and tokens :math:`t^s`, h of the map
of :math:`f(x^s)` on a grid::

    loss = sum_s [ (InfoNCE(z^0, z^s) + InfoNCE(z^s, z^0)) / 2 + w (W(t^0, t^s) + GW(t^0, t^s)) ]

over the crops that have both stains. W is the Wasserstein distance by the cosines of tokens, GW the Gromov-Wasserstein
distance by the cosines within each stain, both as means over the crops. An absent stain (not ``present``, or of one
value everywhere, such as glass) takes no part.

Reference: Jaume et al., Multistain pretraining for slide representation learning in pathology (MADELEINE), ECCV 2024,
arXiv 2408.02859. ``docs/objectives/multistain.md`` lists the differences from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medssl.nn.heads import Projection
from medssl.objectives.base import Objective
from medssl.ops.collectives import gather, mean_over
from medssl.ops.limits import expect
from medssl.ops.similarity import cosine, info_nce, info_nce_chance
from medssl.ops.transport import cosine_costs, gromov_wasserstein, wasserstein
from medssl.types import Loss, Sampling, UserError, ViewPlan

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, View, ViewSpec


class MultiStain(Objective):
    """Alignment of registered stains: contrast of whole crops, optimal transport between their parts.

    Args:
        encoder: Encoder of one stain: its channels are those of one stain, 3 in color.
        view: Cropping and augmentation, the same geometry for all stains.
        stains: Number of stains, 2 or more: groups of channels of a scan, the reference first.
        temperature: Divisor of the cosine similarity, above 0; 0.001 in the paper.
        projection: Channels of the hidden layers and of the output, for whole crops and for parts.
        local_weight: Weight of the alignment of parts, 0 or more.
        tokens: Parts of a crop per axis, at most, 1 or more; a coarser map of the encoder is taken as it is.
        sampling: How scans fill a batch. None takes crops of other subjects where possible, and of tissue.

    Raises:
        UserError: The view does not fit the encoder, or a setting is out of range.
    """

    compares_samples = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        stains: int = 2,
        temperature: float = 0.07,
        projection: Sequence[int] = (256, 128),
        local_weight: float = 1.0,
        tokens: int = 6,
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        expect(stains >= 2, "stains", stains, "2 or more")
        expect(temperature > 0, "temperature", temperature, "above 0")
        expect(local_weight >= 0, "local_weight", local_weight, "0 or more")
        expect(tokens >= 1, "tokens", tokens, "1 or more")
        self.encoder = encoder
        default = Sampling(distinct_subjects="where_possible", foreground=1.0)
        self.needs = ViewPlan((view,), sampling or default)
        self.stains, self.temperature, self.local_weight, self.tokens = stains, temperature, local_weight, tokens
        widths = (encoder.channels[-1], *projection)
        self.whole = Projection(widths, norm=False)
        self.parts = Projection(widths, norm=False) if local_weight > 0 else None

    @property
    def in_channels(self) -> int:
        """Channels of a scan: those of all stains."""
        return self.stains * self.encoder.in_channels

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes all stains in one batch, and aligns each with the reference."""
        self.require(batch, step)
        view = batch.views[0]
        present = self.present_stains(view)
        features = self.encoder(self.filled(view.image, present).flatten(0, 1))
        rows = len(step.samples)
        z = self.whole(features.pooled).reshape(rows, self.stains, -1)
        tokens = None if self.parts is None else self.tokens_of(features.maps[-1])
        samples = torch.tensor(step.samples, device=view.image.device)
        everywhere = gather(samples), gather(present), gather(z)
        if len(everywhere[0]) < 2:
            message = "multistain tells crops from each other, and the batch has one"
            raise UserError(message, key="training.batch_size", got=1, expected="2 or more")
        contrast, chance, local = (z.sum() * 0 for _ in range(3))
        hits: list[Tensor] = []
        for stain in range(1, self.stains):
            value, expected, hit = self.contrast(stain, (samples, present, z), everywhere)
            contrast, chance = contrast + value, chance + expected
            hits.append(hit)
            if tokens is not None:
                local = local + self.transport(tokens[:, 0], tokens[:, stain], present[:, 0] & present[:, stain])
        total = contrast + self.local_weight * local
        terms = {"loss": total, "contrast": contrast, "chance_contrast": chance, "retrieval": torch.stack(hits).mean()}
        terms |= {} if tokens is None else {"transport": local}
        reference = features.pooled[:: self.stains]
        return Loss(total, {name: term.detach() for name, term in terms.items()}, embedding=reference.detach())

    def by_stain(self, channels: Shaped[Tensor, "B C *s"]) -> Shaped[Tensor, "B S c *s"]:
        """Channels as groups, one for each stain."""
        return channels.reshape(len(channels), self.stains, -1, *channels.shape[2:])

    def present_stains(self, view: View) -> Bool[Tensor, "B S"]:
        """Which stains of each crop are there: present, and not of one value everywhere in the scan."""
        groups = self.by_stain(view.image)
        inside = view.valid[:, None]
        low = torch.where(inside, groups, torch.inf).flatten(3).amin(3)
        high = torch.where(inside, groups, -torch.inf).flatten(3).amax(3)
        is_blank = ((low == high) | (low == torch.inf)).all(2)  # a NaN equals nothing, so that it reaches the loss
        return self.by_stain(view.present).all(2) & ~is_blank

    def filled(self, image: Float[Tensor, "B C *s"], present: Bool[Tensor, "B S"]) -> Float[Tensor, "B S c *s"]:
        """Images of the stains; an absent one is the first present one again, so that nothing depends on it.

        Statistics of batch norm then see stains that are there, and zeros only where a crop has none.
        """
        groups = self.by_stain(image)
        first = present.long().argmax(1)
        other = groups[torch.arange(len(groups), device=image.device), first]
        other = torch.where(_wide(present.any(1), other), other, torch.zeros_like(other))
        return torch.where(_wide(present, groups), groups, other[:, None])

    def tokens_of(self, maps: Float[Tensor, "N C *s"]) -> Float[Tensor, "B S T D"]:
        """Projected parts of crops, on a grid of at most ``tokens`` per axis."""
        assert self.parts is not None
        size = [min(self.tokens, extent) for extent in maps.shape[2:]]
        if len(size) == 2:
            pooled = functional.adaptive_avg_pool2d(maps, (size[0], size[1]))
        else:
            pooled = functional.adaptive_avg_pool3d(maps, (size[0], size[1], size[2]))
        rows = pooled.flatten(2).transpose(1, 2)
        projected: Tensor = self.parts(rows.flatten(0, 1))
        return projected.reshape(-1, self.stains, rows.shape[1], projected.shape[1])

    def contrast(
        self,
        stain: int,
        here: tuple[Tensor, Tensor, Tensor],
        everywhere: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """Contrast of the reference with a stain in both directions: loss, loss of equal embeddings, retrieval.

        Args:
            stain: Number of the stain.
            here: Sample numbers, presence and embeddings of the crops of this process.
            everywhere: The same of all processes.
        """
        (samples, present, z), (all_samples, all_present, all_z) = here, everywhere
        both, all_both = (each[:, 0] & each[:, stain] for each in (present, all_present))
        same = samples[:, None] == all_samples
        usable = both[:, None] & all_both
        positives, negatives = same & usable, ~same & usable
        losses = [
            info_nce(z[:, a], all_z[:, b], positives, negatives, temperature=self.temperature)
            for a, b in ((0, stain), (stain, 0))
        ]
        chance = info_nce_chance(positives, negatives | positives)
        near = cosine(z[:, 0].detach(), all_z[:, stain].detach()).masked_fill(~all_both, -2).argmax(1)
        hits = same[torch.arange(len(near), device=near.device), near] & both
        return (losses[0] + losses[1]) / 2, chance, mean_over(hits.sum().float(), both.sum())

    @staticmethod
    def transport(
        reference: Float[Tensor, "B T D"], other: Float[Tensor, "B T D"], counted: Bool[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """Mean over the counted crops of all processes of the distances between two bags of parts."""
        distances = wasserstein(cosine_costs(reference, other)) + gromov_wasserstein(
            1 - cosine(reference, reference), 1 - cosine(other, other)
        )
        return mean_over(torch.where(counted, distances, 0.0).sum(), counted.sum())


def _wide(flags: Bool[Tensor, "*rows"], like: Float[Tensor, "*rows c *s"]) -> Bool[Tensor, "*rows 1 *1"]:
    return flags.reshape(*flags.shape, *[1] * (like.ndim - flags.ndim))
