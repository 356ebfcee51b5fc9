"""The settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from medssl.types import Preprocess, Sampling, UserError, ViewSpec


@dataclass(frozen=True)
class Output:
    """What a run writes and how often, in optimizer steps.

    Attributes:
        checkpoint_every: Steps between checkpoints (``last.pt``, and ``best.pt`` by smoothed loss), at least 1.
        keep_every: Steps between checkpoints that are kept, at least 1; None keeps none.
        picture_every: Steps between pictures, at least 1.
        log_every: Steps between rows of ``metrics.jsonl``, at least 1.
        validate_every: Steps between validations of a fine-tuning, at least 1. The best of the validated weights are
            kept.
        health_every: Steps between measurements of a pretraining's health, at least 1.
        whole_image_batches: Micro-batches of whole images that batch-norm statistics are measured on before the weights
            of a pretraining are written or probed, where hidden cells were filled in during training; 0 leaves the
            statistics as they are.
    """

    checkpoint_every: int = 500
    keep_every: int | None = None
    picture_every: int = 500
    log_every: int = 10
    validate_every: int = 50
    health_every: int = 20
    whole_image_batches: int = 50

    def __post_init__(self) -> None:
        for each in fields(self):
            least = 0 if each.name == "whole_image_batches" else 1
            refuse_below(least, f"training.output.{each.name}", getattr(self, each.name))


@dataclass(frozen=True)
class Computing:
    """On what, and how, a step is computed.

    Attributes:
        precision: "bf16" and "fp16" compute in half precision and keep weights in single precision; "auto" is bf16
            where the device computes in it natively, else fp32. A run that is continued keeps its precision.
        accelerator: Device: "auto" takes a GPU if there is one.
        recompute: Compute the stages or blocks of the encoder again in the backward pass instead of keeping what they
            put out: less memory, about a third more time, the same result.
    """

    precision: Literal["auto", "bf16", "fp16", "fp32"] = "fp32"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    recompute: bool = False


@dataclass(frozen=True)
class Training(Computing):
    """How long and how large.

    Attributes:
        steps: Optimizer steps of the whole run, at least 1.
        batch_size: Samples in one micro-batch of one process, at least 1.
        accumulate: Micro-batches per optimizer step, at least 1.
        seed: Seed of the sample order, of all random draws and of random weights, 0 or more.
        extend: Continue a run whose configuration differs in ``steps`` only. With `optimizer.schedule`
            "constant_then_decay" it goes back to before its learning rate fell.
        output: What is written, and how often.
    """

    steps: int = 10_000
    batch_size: int = 4
    accumulate: int = 1
    seed: int = 0
    extend: bool = False
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("batch_size", self.batch_size), ("accumulate", self.accumulate)):
            refuse_below(1, f"training.{name}", value)
        refuse_below(0, "training.seed", self.seed)


@dataclass(frozen=True)
class OnlineProbe:
    """A frozen look at labels while pretraining goes on: it teaches the encoder nothing.

    Attributes:
        target: Name of a scan-level value with classes to probe for; None disables probes.
        every: Steps between probes, at least 1.
        subjects: Largest number of labeled subjects to embed, from the split "train" to fit on and from "val" to score,
            at least 1.
        seed: Seed of the choice of subjects, 0 or more.
    """

    target: str | None = None
    every: int = 500
    subjects: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_below(1, "probe.every", self.every)
        refuse_below(1, "probe.subjects", self.subjects)
        refuse_below(0, "probe.seed", self.seed)


@dataclass(frozen=True)
class SamplingChanges:
    """What is sampled otherwise than the objective asks for; None leaves a field as the objective has it.

    Attributes:
        regions_per_scan: Crops per reading of a scan, at least 1; None takes what the objective needs.
        distinct_subjects: Draw no subject twice in one global batch; "where_possible" repeats subjects where there are
            too few. None takes what the objective needs.
        stratified_axis: Stored axis along which the crops of a scan are spread evenly, 0 to 2; None takes what the
            objective needs.
        slice_axis: Stored axis across which 2D views cut slices from volumes, 0 to 2; None takes what the objective
            needs.
        foreground: Share of crops with their center in the foreground, 0 to 1; None takes what the objective needs.
        balance: How often each scan-level class is drawn: by its scans ("none"), equally often ("equal"), or by the
            square root of its scans ("root"); None takes what the objective needs.
    """

    regions_per_scan: int | None = None
    distinct_subjects: bool | Literal["where_possible"] | None = None
    stratified_axis: int | None = None
    slice_axis: int | None = None
    foreground: float | None = None
    balance: Literal["none", "equal", "root"] | None = None

    def made_in(self, needs: Sampling, objective: str) -> Sampling:
        """What the objective needs, with the fields changed that are given.

        Args:
            needs: What the objective asks for.
            objective: Its name, for messages.

        Raises:
            UserError: The objective knows the place of a crop by its strata, and a change would move them.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name in ("regions_per_scan", "stratified_axis", "slice_axis"):
            needed = getattr(needs, name)
            if needs.stratified_axis is not None and given.get(name, needed) != needed:
                key = "parts" if name == "regions_per_scan" else "axis"
                message = (
                    f"data.sampling.{name} {given[name]}: {objective} needs {needed}, as it takes its "
                    f"{needs.regions_per_scan} crops from equal parts of a scan along axis {needs.stratified_axis}: "
                    f"leave it out and change the objective instead (objective.cues.{key} {given[name]})"
                )
                raise UserError(message)
        return replace(needs, **given)


@dataclass(frozen=True)
class Loading:
    """How samples are read.

    Attributes:
        split: Split to read; None takes all scans.
        workers: Reading processes per training process, 0 or more. 0 reads between the steps.
        preprocess: Rules that the store must have been made with; None accepts those of the store.
        sampling: Changes to how the objective samples scans and crops.
    """

    split: str | None = None
    workers: int = 2
    preprocess: Preprocess | None = None
    sampling: SamplingChanges | None = None

    def __post_init__(self) -> None:
        refuse_below(0, "data.workers", self.workers)


@dataclass(frozen=True)
class Examples:
    """Which labeled scans are learned from, and how.

    Attributes:
        view: Size and augmentation of the crops. Their size is also the window of later predictions.
        target: "mask", or the name of a scan-level value, which the head reads as classes, a number or findings.
            Findings may be several names, with commas.
        train: Split to take labeled subjects from for training.
        validation: Split to validate on. Its subjects are never trained on.
        validation_labels: Number of subjects of the validation split to use, at least 1; None takes all with labels.
        label_seed: Seed of the choice of subjects, 0 or more; None takes the seed of the training. With the same seed,
            a smaller choice is part of a larger one.
        workers: Reading processes per training process, 0 or more. 0 reads between the steps.
        sampling: How scans and crops are drawn for a batch.
    """

    view: ViewSpec
    target: str = "mask"
    train: str = "train"
    validation: str = "val"
    validation_labels: int | None = None
    label_seed: int | None = None
    workers: int = 1
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        refuse_below(1, "data.validation_labels", self.validation_labels)
        refuse_below(0, "data.label_seed", self.label_seed)
        refuse_below(0, "data.workers", self.workers)
        if self.train == self.validation:
            message = "must be another split than data.train"
            raise UserError(message, key="data.validation", got=self.validation)


def refuse_below(least: int, key: str, value: int | None) -> None:
    """Refuses a number below ``least``.

    Raises:
        UserError: Names the key and what it got.
    """
    if value is not None and value < least:
        message = f"must be at least {least}"
        raise UserError(message, key=key, got=value)
