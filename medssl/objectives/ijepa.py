r"""I-JEPA: from the visible part of an image a network predicts the features of hidden boxes, not their voxels.

Predicts: a teacher's features of hidden boxes of patches, from visible patches (Assran et al. 2023).
Encoders: vision transformer.

With four boxes :math:`B_1 \dots B_4` of cells, of one size, and the context C of visible cells, outside of all boxes;
encoder f, predictor p with position embeddings, and teacher g, which follows f and sees the whole image::

    y_i  = norm(g(x)_i)                            layer norm without weights, of each token
    loss = mean over boxes and their cells i of smooth-L1(p(f(x_C), B)_i - y_i)
    g   <- m g + (1 - m) f after each step; m rises to 1

No view is changed in brightness, and none is compared with another: what is learned comes from the image alone. With
``target_depths`` above 1, y is the mean of the normalized outputs of so many depths, as in data2vec. The teacher's
encoder is what is saved.

References: Assran et al., Self-supervised learning from images with a joint-embedding predictive architecture, CVPR
2023, arXiv 2301.08243; Baevski et al., data2vec, ICML 2022, arXiv 2202.03555. Differences: cells are hidden until every
sample hides as many as its boxes have together, where the paper truncates to the fewest of a batch; this takes the
place of the context block. Cells on padding do not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from medssl.nn.teacher import Teacher
from medssl.nn.token_predictor import TokenPredictor
from medssl.objectives.base import Objective
from medssl.ops.collectives import mean_over, reduce_sum
from medssl.ops.draws import draws, keyed_generator
from medssl.ops.limits import expect
from medssl.ops.masking import target_boxes
from medssl.ops.patches import cells_of
from medssl.ops.reconstruction import hidden_positions
from medssl.ops.schedules import cosine
from medssl.types import Loss, MaskMode, ViewPlan

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor, nn

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, View, ViewSpec

BOXES, ASPECT = 4, 1.5  # as published


class IJEPA(Objective):
    """I-JEPA: predicts a momentum teacher's features of hidden boxes from visible patches.

    Args:
        encoder: Encoder with the mask mode "drop".
        view: The view; its size must be a multiple of the encoder's patch.
        box: Smallest and largest share of the grid that one of the four boxes covers, above 0 to 0.225.
        predictor_width: Channels inside the predictor, a multiple of 32.
        predictor_depth: Number of blocks of the predictor, at least 1.
        momentum: Share of the teacher's weights that stays in a step, first and last, along a cosine.
        target_depths: Number of depths, 1 to those that the encoder returns (at most 4), whose normalized outputs are
            averaged into the target: 1 is I-JEPA's, 4 is like data2vec's.

    Raises:
        UserError: The encoder does not support "drop", the view does not fit it, or a setting is out of range.
    """

    mode: MaskMode = "drop"

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        box: tuple[float, float] = (0.15, 0.2),
        predictor_width: int = 384,
        predictor_depth: int = 6,
        momentum: tuple[float, float] = (0.996, 1.0),
        target_depths: int = 1,
    ) -> None:
        super().__init__()
        self.masks_with(encoder, self.mode, type(self).__name__)
        self.fits(encoder, view)
        expect(0 < box[0] <= box[1] <= 0.9 / BOXES, "box", box, "two shares above 0 to 0.225, the lower first")
        expect(predictor_width >= 1, "predictor_width", predictor_width, "a multiple of 32")
        expect(all(0 <= m <= 1 for m in momentum), "momentum", momentum, "from 0 to 1")
        depths = len(encoder.channels)
        expect(1 <= target_depths <= depths, "target_depths", target_depths, f"from 1 to {depths}")
        self.encoder = encoder
        self.needs = ViewPlan((view,))
        self.cells = cells_of(view.size, encoder.strides[-1])
        self.box, self.momentum, self.target_depths = tuple(box), tuple(momentum), target_depths
        self.predictor = TokenPredictor(encoder.channels[-1], width=predictor_width, depth=predictor_depth)
        self.teacher = Teacher({"encoder": encoder})

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes the visible patches, predicts the features of the boxes, and compares with the teacher's."""
        self.require(batch, step)
        view = batch.views[0]
        boxes, hidden = self.boxes(view, step)
        features = self.encoder(view.image, hidden, mode=self.mode)
        assert features.tokens is not None  # the contract of the mode
        assert features.visible_cells is not None
        tokens, visible = (x.repeat_interleave(BOXES, 0) for x in (features.tokens, features.visible_cells))
        wanted = boxes.flatten(0, 1)
        predicted = self.predictor(tokens, visible, wanted, self.cells, step=self.encoder.step)
        goals = self.goals(view.image).repeat_interleave(BOXES, 0)
        goals = goals.gather(1, wanted[..., None].expand(-1, -1, goals.shape[2]))
        counted = self.counted(view, boxes)
        count = counted.sum()
        errors = F.smooth_l1_loss(predicted.to(goals.dtype), goals, reduction="none").mean(-1)
        loss = mean_over(torch.where(counted, errors, 0.0).sum(), count, step.counts)
        terms = {"loss": loss.detach(), "chance": self.chance(goals, counted)}
        return Loss(loss, terms, embedding=features.pooled.detach())

    @torch.no_grad()
    def goals(self, image: Float[Tensor, "B C *s"]) -> Float[Tensor, "B N C"]:
        """The teacher's features of all cells, each normalized; the mean over depths."""
        maps = self.teacher["encoder"](image).maps[-self.target_depths :]
        rows = [values.flatten(2).mT.to(torch.promote_types(values.dtype, torch.float32)) for values in maps]
        return torch.stack([F.layer_norm(row, row.shape[-1:]) for row in rows]).mean(0)

    @staticmethod
    @torch.no_grad()
    def chance(goals: Float[Tensor, "MB T C"], counted: Bool[Tensor, "MB T"]) -> Float[Tensor, ""]:
        """Loss of a network that predicts the mean target."""
        rows = goals[counted]
        count = reduce_sum(rows.new_tensor(float(len(rows))))
        mean = reduce_sum(rows.sum(0)) / count.clamp(min=1)
        return mean_over(F.smooth_l1_loss(rows, mean.expand_as(rows), reduction="none").mean(-1).sum(), len(rows))

    def boxes(self, view: View, step: Step) -> tuple[Int[Tensor, "B M T"], Bool[Tensor, "B *cells"]]:
        """Cells of the boxes of each sample, and the mask; the size of the boxes belongs to the step."""
        sizes = keyed_generator(step.seed, step.index, "ijepa.sizes")
        low, high = self.box
        boxes, hidden = target_boxes(
            self.cells, draws(step, "ijepa.boxes"), sizes, count=BOXES, share=(low, high), aspect=ASPECT
        )
        return boxes.to(view.image.device), hidden.to(view.image.device)

    def counted(self, view: View, boxes: Int[Tensor, "B M T"]) -> Bool[Tensor, "MB T"]:
        """Which cells of the boxes are scored in half of their voxels or more."""
        everything = torch.ones(len(boxes), *self.cells, dtype=torch.bool, device=view.image.device)
        counted = hidden_positions(view, everything, self.encoder.strides[-1])
        return counted.gather(1, boxes.flatten(1)).reshape(-1, boxes.shape[2])

    def counts(self, batch: Batch, step: Step) -> Tensor:
        """Number of cells that count."""
        view = batch.views[0]
        return self.counted(view, self.boxes(view, step)[0]).sum()

    def after_step(self, step: Step) -> None:
        """Moves the teacher."""
        self.teacher.follow({"encoder": self.encoder}, cosine(step.progress, *self.momentum))

    def after_load(self) -> None:
        """The teacher starts as the encoder does."""
        self.teacher.copy_from({"encoder": self.encoder})

    def exported(self) -> dict[str, nn.Module]:
        """The teacher's encoder."""
        return {"encoder": self.teacher["encoder"]}
