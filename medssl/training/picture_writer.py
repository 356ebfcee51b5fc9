"""Draws what the objective makes of the same samples again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medssl.training.events import Listener
from medssl.training.pictures import draw

if TYPE_CHECKING:
    from pathlib import Path

    from medssl.training.events import StepRecord
    from medssl.training.loop import TrainingLoop
    from medssl.types import Crops


class PictureWriter(Listener):
    """Draws ``objective.pictures`` of the first samples every ``every`` steps into ``pictures/step_000500.png``.

    Only the first process does, so ``pictures`` must not talk to the others, and must leave the objective as it was.
    """

    def __init__(self, folder: Path, *, every: int) -> None:
        self.folder = folder
        self.every = every
        self.crops: Crops | None = None

    def on_step(self, loop: TrainingLoop, record: StepRecord) -> None:
        """Draws where it is time to."""
        pictures = getattr(loop.objective, "pictures", None)
        due = record.step == 1 or loop.is_over or record.step % self.every == 0
        if pictures is None or loop.rank > 0 or not due:
            return
        if self.crops is None:  # the first micro-batch of the run, read in this process
            self.crops = next(iter(loop.source.crops(0, 0, loop.world_size, 0)))
        with torch.no_grad():
            batch = loop.source.batch(self.crops, loop.device, alone=True)
            drawn = pictures(batch, loop.step_of(batch.origin.samples))
            captions = getattr(loop.objective, "captions", None)
            words = captions(batch) if captions else ()
        self.folder.mkdir(exist_ok=True)
        images = {name: image.float().cpu() for name, image in drawn.items()}
        view = batch.views[0]
        to_the_right = bool(view.world_affine[0, 0, 0] > 0)
        spacing_mm = view.spacing_mm.median(0).values.tolist()
        draw(self.folder / f"step_{record.step:06d}.png", images, spacing_mm, mirrored=to_the_right, captions=words)
