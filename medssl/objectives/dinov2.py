r"""DINOv2: iBOT with a head of its own for positions, embeddings that are kept apart, and a stage for dense features.

Predicts: the teacher's assignment of another view and of hidden positions; spreads embeddings (Oquab et al. 2024).
Encoders: vision transformer.

With global views u of each crop, boxes of cells :math:`M_u` hidden from the student in about half of them, local views
v; student f, teacher g; scores s of K prototypes; T temperatures, q the teacher's targets (centering or Sinkhorn)::

    pooled = mean over crops and pairs (u, v), u != v, of CE(q(g(u)), softmax(s(f(v)) / T_s));  f gets v masked
    patch  = mean over global views of the mean over M_u of CE(q'(g(u)_i), softmax(s'(f(u, M_u)_i) / T_s))
    spread = sum over both global views of KoLeo(f(u)) (or KDE), over the crops of all processes
    gram   = mean over global views and positions i, j of (f_i . f_j - e_i . e_j)^2,  unit vectors of f(u, M_u) and e(u)
    loss   = pooled + patch + 0.1 spread + w gram
    g     <- m g + (1 - m) f after each step; m rises to 1

The Gram teacher e is the teacher of an earlier step: w is 0 until ``gram.start``, where e takes over the teacher's
weights, and it does so again every ``gram.every``. This stage repairs dense features that long training degrades.

A stage at high resolution is a second run with larger views that continues from the first one. The teacher's encoder is
what is saved.

References: Oquab et al., DINOv2: Learning robust visual features without supervision, TMLR 2024, arXiv 2304.07193;
Simeoni et al., DINOv3, 2025, arXiv 2508.10104 (Gram stage); Chen et al., Towards a general-purpose foundation model for
computational pathology (UNI), Nature Medicine 2024; Perez-Garcia et al., RAD-DINO, Nature Machine Intelligence 2025,
arXiv 2401.10815; Zimmermann et al., Virchow2, 2024, arXiv 2408.00738 (KDE). Differences: left and right are not
exchanged, positions on padding do not count, which views are masked is drawn for each view, and KoLeo compares the rows
of all processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from medssl.nn.prototype_head import Prototypes
from medssl.nn.self_distillation import PATCH, POOLED, SelfDistillation
from medssl.nn.teacher import Teacher, Teaching
from medssl.objectives.base import Objective, join_views
from medssl.ops.draws import draws
from medssl.ops.gram import enlarged, gram_distance, to_grid
from medssl.ops.limits import expect
from medssl.ops.masking import Masks, mask_cells
from medssl.ops.multi_crop import WHOLE, multi_crop
from medssl.ops.reconstruction import hidden_positions
from medssl.ops.spreading import kde, koleo
from medssl.types import Loss, MaskMode, ViewPlan

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from medssl.encoders.base import Encoder
    from medssl.nn.self_distillation import Compared
    from medssl.types import Batch, Step, View, ViewSpec


@dataclass(frozen=True)
class Gram:
    """Stage for dense features: similarities of positions stay as a teacher of an earlier step has them.

    Attributes:
        weight: Weight of the loss, 0 or more; 0 leaves it out. DINOv3 ends at 2.
        start: Share of the training, 0 to 1, from which on it counts. 0 takes the initial weights for the Gram teacher.
        every: Share of the training, above 0 to 1, after which the Gram teacher takes over the teacher's weights again.
        resolution: Whole factor, 1 or more, by which the images of the Gram teacher are enlarged.
    """

    weight: float = 0.0
    start: float = 0.8
    every: float = 0.05
    resolution: int = 1

    def __post_init__(self) -> None:
        expect(self.weight >= 0, "regularization.gram.weight", self.weight, "0 or more")
        expect(0 <= self.start <= 1, "regularization.gram.start", self.start, "from 0 to 1")
        expect(0 < self.every <= 1, "regularization.gram.every", self.every, "above 0 to 1")
        expect(self.resolution >= 1, "regularization.gram.resolution", self.resolution, "a whole number of at least 1")

    def renews(self, step: Step) -> bool:
        """Whether the Gram teacher takes over the teacher's weights after a step."""
        first, interval = round(self.start * step.total), max(1, round(self.every * step.total))
        return step.index + 1 >= first and (step.index + 1 - first) % interval == 0


@dataclass(frozen=True)
class Regularization:
    """What is added to the losses of the teacher.

    Attributes:
        spread: Keeps embeddings of different crops apart: "koleo", "kde" (for crops that are much alike, such as tiles
            of one slide), or "none".
        weight: Weight of ``spread``, 0 or more.
        gram: Stage for dense features.
    """

    spread: Literal["koleo", "kde", "none"] = "koleo"
    weight: float = 0.1
    gram: Gram = field(default_factory=Gram)

    def __post_init__(self) -> None:
        expect(self.weight >= 0, "regularization.weight", self.weight, "0 or more")


class DINOv2(SelfDistillation, Objective):
    """DINOv2: predicts a momentum teacher's assignment of other views and of hidden positions, and spreads embeddings.

    Args:
        encoder: Encoder with the mask mode "fill".
        view: How the two global views are cut and changed.
        local_view: How the local views are cut and changed; None has none.
        local_views: Number of local views, 0 or more.
        masks: What is hidden from the student in global views.
        prototypes: The heads; one serves whole images and positions where ``separate`` is False.
        teaching: The teacher.
        regularization: What keeps embeddings apart, and the stage for dense features.

    Raises:
        UserError: The encoder cannot be masked, a view does not fit it, or a setting is out of range.
    """

    mode: MaskMode = "fill"
    gram_teacher: Teacher | None

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        local_view: ViewSpec | None = None,
        local_views: int = 0,
        masks: Masks = Masks((0.1, 0.5), 0.5),
        prototypes: Prototypes = Prototypes(),
        teaching: Teaching = Teaching(),
        regularization: Regularization = Regularization(),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.masks_with(encoder, self.mode, type(self).__name__)
        self.needs = ViewPlan(multi_crop(view, local_view, local_views))
        for spec in self.needs.views:
            self.fits(encoder, spec)
        self.cells = mask_cells(view.size, masks.cell or encoder.mask_cell, encoder.strides, masks.ratio[1])
        self.masks, self.prototypes, self.teaching = masks, prototypes, teaching
        self.regularization, self.gram = regularization, regularization.gram
        self.compares_samples = teaching.assignment == "sinkhorn" or self._spreads
        self.add_teacher((POOLED, PATCH), encoder.channels[-1])
        self.gram_teacher = Teacher({"encoder": encoder}) if self.gram.weight > 0 else None

    @property
    def _spreads(self) -> bool:
        return self.regularization.spread != "none" and self.regularization.weight > 0

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Masks the global views, compares all views and hidden positions with the teacher, and regularizes."""
        self.require(batch, step)
        whole = join_views(batch.views[:WHOLE])
        hidden = self.masks.draw(self.cells, draws(step, "dinov2.mask"), WHOLE).to(whole.image.device)
        compared = self.compare_masked(whole, batch.views[WHOLE:], hidden, step)
        loss = compared.losses[POOLED] + compared.losses[PATCH]
        terms = self.terms(compared.losses, compared.targets) | {"chance": compared.chance}
        if self._spreads:
            spread = self.spread(compared.features.pooled, len(step.samples))
            loss = loss + self.regularization.weight * spread
            terms["spread"] = spread.detach()
        if self.gram_teacher is not None and step.progress >= self.gram.start:
            distance = self.gram_loss(compared, whole)
            loss = loss + self.gram.weight * distance
            terms["gram"] = distance.detach()
        terms["loss"] = loss.detach()
        return Loss(loss, terms, embedding=compared.features.pooled[: len(step.samples)].detach())

    def spread(self, pooled: Float[Tensor, "GB C"], samples: int) -> Float[Tensor, ""]:
        """Sum over the global views; views of one crop are not compared with each other."""
        spread = kde if self.regularization.spread == "kde" else koleo
        return torch.stack([spread(rows) for rows in pooled.reshape(WHOLE, samples, -1)]).sum()

    def gram_loss(self, compared: Compared, whole: View) -> Float[Tensor, ""]:
        """Distance of the student's similarities, in masked views, from the Gram teacher's in whole ones."""
        assert self.gram_teacher is not None
        maps = compared.features.maps[-1]
        with torch.no_grad():
            earlier = self.gram_teacher["encoder"](enlarged(whole.image, self.gram.resolution)).maps[-1]
            earlier = to_grid(earlier, maps.shape[2:])
        everything = torch.ones(len(maps), *self.cells, dtype=torch.bool, device=maps.device)
        counted = hidden_positions(whole, everything, self.encoder.strides[-1])
        return gram_distance(maps.flatten(2).mT, earlier.flatten(2).mT, counted)

    def after_step(self, step: Step) -> None:
        """Moves the teacher and the centers; renews the Gram teacher where it is time to."""
        super().after_step(step)
        if self.gram_teacher is not None and self.gram.renews(step):
            self.gram_teacher.copy_from({"encoder": self.teacher["encoder"]})

    def after_load(self) -> None:
        """The teacher and the Gram teacher start as the student."""
        super().after_load()
        if self.gram_teacher is not None:
            self.gram_teacher.copy_from({"encoder": self.encoder})

    def exported(self) -> dict[str, nn.Module]:
        """The teacher's encoder."""
        return {"encoder": self.teacher["encoder"]}
