"""The settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from medssl.types import Preprocess, Sampling, UserError, ViewSpec


@dataclass(frozen=True)
class Output:
    """What a run writes and how often, in optimizer steps.

    Attributes:
        checkpoint_every: Steps between checkpoints (``last.pt``, and ``best.pt`` by smoothed loss).
        keep_every: Steps between checkpoints that are kept for good; None keeps none.
        picture_every: Steps between pictures.
        log_every: Steps between rows of ``metrics.jsonl``.
        validate_every: Steps between validations of a fine-tuning; its best weights are chosen among these.
        health_every: Steps between measurements of a pretraining's health.
    """

    checkpoint_every: int = 500
    keep_every: int | None = None
    picture_every: int = 500
    log_every: int = 10
    validate_every: int = 50
    health_every: int = 20

    def __post_init__(self) -> None:
        for each in fields(self):
            refuse_below(1, f"training.output.{each.name}", getattr(self, each.name))


@dataclass(frozen=True)
class Training:
    """How long and how large.

    Attributes:
        steps: Optimizer steps of the whole run.
        batch_size: Samples of one micro-batch in one process.
        accumulate: Micro-batches of one step.
        precision: "bf16" and "fp16" compute in half precision and keep weights in single precision; "auto" is bf16
            where the device computes in it, else fp32.
        seed: Seed of the order, of every draw and of the first weights.
        accelerator: "auto" takes a GPU where there is one.
        extend: Go on with a run whose configuration differs in ``steps`` alone.
        output: What is written, and how often.
    """

    steps: int = 10_000
    batch_size: int = 4
    accumulate: int = 1
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "fp32"
    seed: int = 0
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
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
        target: Name of a scan-level value with classes; None looks at no labels.
        every: Steps between looks.
        subjects: Labeled subjects that are embedded at most, of the split "train" to learn from and of "val" to judge.
        seed: Seed of their choice.
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
        regions_per_scan: Crops taken from one reading of a scan.
        distinct_subjects: No subject twice in one global batch.
        stratified_axis: Stored axis along which the regions of a scan are spread evenly.
        slice_axis: Stored axis that 2D plans take slices across when scans are volumes.
        foreground: Share of crops whose center must be foreground.
        balance: How often each scan-level class is drawn, where scans have classes.
    """

    regions_per_scan: int | None = None
    distinct_subjects: bool | None = None
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
        split: Only scans of this split; None takes all.
        workers: Processes that read, for each training process; 0 reads between the steps.
        preprocess: The rules that the store must have been made by; None takes those of the store.
        sampling: How scans and regions fill a batch otherwise than the objective asks for.
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
        view: How a view is cut out of a scan and changed at random; its size is the window of later predictions.
        target: "mask", or the name of a scan-level value: by the head its classes, a number, or findings (of these also
            several names with commas between them).
        train: Split that labeled subjects are taken from.
        validation: Split that the best step is chosen by; its subjects are never learned from.
        validation_labels: Subjects of that split that are used; None takes all that have labels.
        label_seed: Seed of the choice of subjects; None takes the seed of the training. Of one seed, fewer subjects
            are always among more.
        workers: Processes that read, for each training process; 0 reads between the steps.
        sampling: How scans and regions fill a batch.
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
            message = f"data.train and data.validation are both {self.train!r}: subjects must be apart"
            raise UserError(message)


def refuse_below(least: int, key: str, value: int | None) -> None:
    """Refuses a number below ``least``.

    Raises:
        UserError: Names the key and what it got.
    """
    if value is not None and value < least:
        message = f"{key} must be at least {least}, got {value}"
        raise UserError(message)
