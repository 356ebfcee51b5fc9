"""The verb ``finetune``: an encoder and a few labels become a network that segments, classifies or measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from medssl.data.bags.description import is_bags
from medssl.data.labels.kinds.base import kind_of
from medssl.data.labels.trained_on import missing_note, trained_on
from medssl.data.loading.loader import small_scans
from medssl.data.store.store import Store
from medssl.encoders.base import Encoder
from medssl.encoders.weights import CARD, make_encoder
from medssl.heads.base import Head, Network
from medssl.heads.mil.base import BagHead
from medssl.heads.segmentation import SegmentationHead
from medssl.heads.weights import save_network
from medssl.io.permissions import owner_only
from medssl.io.trust import names
from medssl.training import lora
from medssl.training.axes import open_store
from medssl.training.bags import BagTraining, training_on_bags
from medssl.training.batch_source import batches_of_store
from medssl.training.checkpoint import RunFolder
from medssl.training.configuration import as_data, imported
from medssl.training.events import Listener
from medssl.training.initial_weights import (
    Allowed,
    InitialWeights,
    load_decoder,
    load_encoder,
    log_keys,
    read_initial_weights,
    refuse_test_subjects,
    weights_in_words,
    with_channels,
    with_drop_path,
)
from medssl.training.label_targets import balanced_groups, prepare, schema_for, target_notes
from medssl.training.linear_start import LinearStart, with_possible_start
from medssl.training.loop import TrainingLoop, keyed_seed
from medssl.training.optim import FineTuning
from medssl.training.pseudo_labels import (
    TEACHER,
    PseudoLabels,
    in_configuration,
    teacher_subjects,
    with_pseudo_labels,
)
from medssl.training.resolved import resolved
from medssl.training.results import TrainingResult
from medssl.training.resume import first_progress
from medssl.training.run import refuse_hardware
from medssl.training.run import run as train
from medssl.training.selection import TrainingSelection, select_scans
from medssl.training.settings import Examples, Training
from medssl.training.supervised import Supervised
from medssl.training.validation import Validation
from medssl.training.versions import package_versions
from medssl.types import Card, Imported, LabelSchema, Tuned, UserError
from medssl.types.provenance import TrainingSubjects
from medssl.views.mixing import Mixing


@owner_only()
def finetune(  # noqa: PLR0913 (the keys of a command line)
    *,
    store: Path,
    run: Path,
    head: Callable[[Encoder, LabelSchema], Head],
    data: Examples,
    training: Training,
    pretrained: Path | None = None,
    from_scratch: bool = False,
    encoder: Callable[[], Encoder] | None = None,
    labels: int | float | None = None,
    optimizer: FineTuning = FineTuning(),  # noqa: B008 (frozen)
    mixing: Mixing = Mixing(),  # noqa: B008 (frozen)
    pseudo: PseudoLabels = PseudoLabels(),  # noqa: B008 (frozen)
    allow: tuple[Allowed, ...] = (),
    trust: str = "",
) -> TrainingResult:
    """Train an encoder and a head on labeled subjects, or continue a run that was stopped.

    Args:
        store: Folder written by ``medssl cache``, with labels, or a folder of bags.
        run: Folder of the run. If it holds a run of the same configuration, training continues from its last
            checkpoint.
        head: Head to train: a preset or an import path.
        data: Which labeled scans are used, and how.
        training: Length, batch size, precision, seed and output.
        pretrained: Run folder of ``medssl pretrain`` to start from, or a file of weights (with the encoder that they
            fit).
        from_scratch: Take the encoder of ``pretrained`` with random weights: the from-scratch baseline of a comparison.
        encoder: Encoder: a preset or an import path. Needed if ``pretrained`` is a file or absent; else that of the run
            is taken.
        labels: Number of labeled subjects to train on, or a share of them (0.25); None takes all.
        optimizer: Optimizer, learning rates, layer decay and low-rank adaptation.
        mixing: Mixing of the samples of a batch (mixup, cutmix).
        pseudo: Labels of another network to train on as well (self-training).
        allow: Names, with commas. "seen": continue although the encoder, or the teacher of the pseudo-labels, was
            trained on subjects of the split "test". "channels": spread the first layer's weights over another number
            of channels. "preprocess": take a store that was made by other rules.
        trust: Import paths, with commas, of classes that are not part of medssl and that a card or configuration may
            load.

    Returns:
        The run as it is now.

    Raises:
        UserError: Something the user can put right.
    """
    refuse_hardware(training)
    if is_bags(store):
        refuse_for_bags(pretrained, encoder, mixing, pseudo)
        bags = training_on_bags(store, run, head, data, training, labels=labels, optimizer=optimizer, allow=allow)
        return train_on_bags(bags, run, data)
    initial = read_initial_weights(pretrained, encoder, from_scratch=from_scratch, trust=names(trust))
    initial = with_drop_path(initial, optimizer.drop_path)
    opened = open_store(store, initial, allow, size=data.view.size, key="data.view.size")
    initial = with_channels(initial, opened.channels, allow)
    schema = schema_for(opened, data.target, head)
    chosen, digest = select_scans(opened, schema, data, labels, training.seed), opened.digest
    opened, drawn = with_pseudo_labels(opened, chosen.learned, data.train, pseudo, schema, training.seed)
    chosen = replace(chosen, drawn=drawn)
    teacher = teacher_subjects(pseudo)
    leaks = refuse_test_subjects(opened, {"the encoder": initial.training_subjects, TEACHER: teacher}, allow)
    network, loaded = build(initial, head, schema, training.seed)
    refuse_misfit(network, data, training, mixing)
    optimizer = with_possible_start(optimizer, network.head)
    prepare(network, opened, chosen.learned)
    optimizer, training, settled = resolved(optimizer, training, RunFolder(run), network, [data.view.size])
    adapted = lora.adapt(network.encoder.requires_grad_(optimizer.head_first < 1), optimizer.lora)
    objective = Supervised(network, data, optimizer, mixing)
    config: dict[str, Any] = as_data(
        {"encoder": initial.encoder, "start": initial.digest, "head": head, "labels": labels, "data": data}
        | {"training": training, "optimizer": optimizer, "mixing": mixing, "pseudo": in_configuration(pseudo)}
    )
    groups, per_voxel = balanced_groups(opened, chosen.learned, schema, data), kind_of(schema).per_voxel
    scans, split = chosen.drawn or chosen.learned, data.train
    choice: dict[str, Any] = {"split": split, "scans": scans, "groups": groups, "with_labels": per_voxel}
    source = batches_of_store(opened, objective.needs, training, workers=data.workers, **choice)
    loop = TrainingLoop(objective, source, optimizer, steps=training.steps, progress=first_progress(training, digest))
    card = make_card(config, initial, opened, schema, chosen, teacher)

    def export() -> None:
        save_network(run, lora.merged(objective.written), replace(card, step=loop.progress.step))

    watching = watching_of(opened, chosen, data, optimizer, every=training.output.validate_every)
    notes = [*settled, *first_notes(opened, data, chosen, loaded, schema), *filter(None, [adapted]), *map(str, leaks)]
    return train(loop, RunFolder(run), config, training, data=data, notes=notes, export=export, watching=watching)


def train_on_bags(bags: BagTraining, run: Path, data: Examples) -> TrainingResult:
    """Runs a training on bags."""
    folder, notes, export = RunFolder(run), bags.notes, bags.export
    return train(
        bags.loop, folder, bags.config, bags.training, data=data, notes=notes, export=export, watching=bags.watching
    )


def refuse_for_bags(
    pretrained: Path | None, encoder: Callable[[], Encoder] | None, mixing: Mixing, pseudo: PseudoLabels
) -> None:
    """Refuses what has no meaning for bags, whose features are computed already.

    Raises:
        UserError: Names the key.
    """
    given = {"pretrained": pretrained, "encoder": encoder, "mixing": mixing.enabled, "pseudo": pseudo != PseudoLabels()}
    for key, value in given.items():
        if value:
            message = "the store is a folder of bags, whose features are computed already"
            raise UserError(message, key=key, hint="Leave it out")


def watching_of(
    store: Store, chosen: TrainingSelection, data: Examples, optimizer: FineTuning, *, every: int
) -> list[Listener]:
    """The fit of the head to the frozen encoder, where one is wanted, and the validation."""
    start: list[Listener] = [LinearStart(store, chosen.learned, data)] if optimizer.probe.start else []
    return [*start, Validation(store, chosen.validated, data, every=every, keep=optimizer.keep)]


def build(
    initial: InitialWeights, head: Callable[[Encoder, LabelSchema], Head], schema: LabelSchema, seed: int
) -> tuple[Network, str]:
    """The network with its first weights, and a line on what became of the loaded ones.

    The head is drawn before any weights are loaded: a twin from scratch starts with the same head.
    """
    torch.manual_seed(keyed_seed(seed))
    encoder = make_encoder(initial.encoder, "encoder" if initial.card is None else CARD, initial.trust)
    network = Network(encoder, head(encoder, schema))
    report = load_encoder(encoder, initial)
    if report is None:
        return network, weights_in_words(initial)
    log_keys(report)
    step = f" of step {initial.card.step}" if initial.card else ""
    decoder = load_decoder(network.head, initial)
    return network, "; ".join(filter(None, (f"weights{step}: {report}", decoder)))


def refuse_misfit(network: Network, data: Examples, training: Training, mixing: Mixing) -> None:
    """Refuses a head, a view or a batch that does not fit what is asked.

    Raises:
        UserError: Names both sides.
    """
    axes, kind = len(data.view.size), network.head.kind
    if isinstance(network.head, BagHead):
        message, hint = "pools the tiles of bags", "Embed the scans first, and give the folder of bags as store"
        raise UserError(message, key="head", got=type(network.head).__name__, hint=hint)
    if mixing.enabled and training.batch_size < 2:
        message = "mixing takes samples of one micro-batch: set training.batch_size to 2 or more"
        raise UserError(message)
    if axes not in network.encoder.ndims:
        own = " or ".join(f"{ndim}D" for ndim in sorted(network.encoder.ndims))
        message = f"the encoder takes {own}, data.view.size {list(data.view.size)} has {axes} axes: change either"
        raise UserError(message)
    if kind_of(network.head.schema).task != kind:
        message = f"the head is for {kind}, the target is {data.target!r}: choose another head or data.target"
        raise UserError(message)
    refuse_one_scale(network.head)
    for size, stride in zip(data.view.size, network.encoder.strides[-1], strict=True):
        if size % stride:
            fit = [max(stride, n) for n in (size // stride * stride, -(-size // stride) * stride)]
            message = (
                f"data.view.size {list(data.view.size)}: {size} is not a multiple of the encoder's stride {stride}; "
                f"{fit[0]} and {fit[1]} are"
            )
            raise UserError(message)


def refuse_one_scale(head: Head) -> None:
    """Refuses deep supervision of one scale.

    Raises:
        UserError: Names the key.
    """
    one_scale = isinstance(head, SegmentationHead) and len(head.level_strides) == 1
    if one_scale and getattr(head, "deep_supervision", False):
        message = "the decoder has too few steps: without the coarsest, which is never supervised, one scale is left"
        hint = "Set it to false, or take an encoder of more stages."
        raise UserError(
            message, key="head.deep_supervision", got=True, expected="a decoder of 3 steps or more", hint=hint
        )


def first_notes(store: Store, data: Examples, chosen: TrainingSelection, loaded: str, schema: LabelSchema) -> list[str]:
    """What the first line tells of labels and weights."""
    counts = [(len(store.distinct_subjects(scans)), len(scans)) for scans in (chosen.learned, chosen.validated)]
    notes = [
        loaded,
        "{} labeled subjects ({} scans) to learn from".format(*counts[0]),
        "{} ({}) to validate with".format(*counts[1]),
    ]
    if more := len({*chosen.drawn} - {*chosen.learned}):
        notes.append(f"{more} scans with pseudo-labels")
    small = small_scans(store, tuple(data.view.size), split=data.train, slice_axis=data.sampling.slice_axis)
    padded = [f"{small} scans of split {data.train!r} are smaller than the view and are padded"] if small else []
    for scans, where in ((chosen.learned, "learn from"), (chosen.validated, "validate with")):
        notes += target_notes(store, scans, schema, where=where)
    notes += map(str, missing_note(trained_on(store, (*chosen.learned, *chosen.drawn), schema)))
    return notes + padded


def make_card(
    config: dict[str, Any],
    initial: InitialWeights,
    store: Store,
    schema: LabelSchema,
    chosen: TrainingSelection,
    teacher: TrainingSubjects,
) -> Card:
    """What the network is; the step is filled in when it is written.

    Subjects that the teacher of pseudo-labels was trained on count as subjects of this training, too.
    """
    size, axis = config["data"]["view"]["size"], config["data"]["sampling"]["slice_axis"]
    flip = config["data"]["view"]["geometry"]["flip"]
    scans = (*chosen.learned, *chosen.drawn, *chosen.validated)
    labeled = {*store.distinct_subjects(scans), *teacher.labeled, *initial.labeled}
    return Card(
        encoder=Imported(**config["encoder"]),
        preprocess=store.preprocess,
        objective=initial.card.objective if initial.card and initial.weights else None,
        index_digest=store.index_digest,
        subjects=initial.provenance | teacher.pretrained,
        step=0,
        versions=package_versions(synthetic=store.synthetic),
        tuned=Tuned(
            head=imported(config["head"]),
            schema=schema,
            window=tuple(size),
            slice_axis=axis,
            subjects=tuple(sorted(labeled)),
            trained_on=trained_on(store, (*chosen.learned, *chosen.drawn), schema),
            flip=store.preprocess.mirror if flip == "data" else flip,
        ),
    )
