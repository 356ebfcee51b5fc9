"""Fine-tuning of a head on bags: the objective, its batches, its validation and the card."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from medssl.data.bags.batches import BagSampling, bag_batches, refuse_no_tiles, whole_batch
from medssl.data.bags.store import BagStore
from medssl.data.labels.kinds.base import kind_of
from medssl.data.labels.trained_on import missing_note
from medssl.data.split import refuse_leaks
from medssl.encoders.precomputed import Precomputed
from medssl.heads.base import Network
from medssl.heads.mil.base import BagHead, answer_of
from medssl.heads.weights import save_network
from medssl.training.batch_source import BatchSource
from medssl.training.checkpoint import RunFolder
from medssl.training.configuration import as_data, imported
from medssl.training.label_targets import balanced_groups, prepare, schema_for, target_notes, targets_of
from medssl.training.loop import TrainingLoop, keyed_seed
from medssl.training.optim import FineTuning, FrozenProbe
from medssl.training.resolved import resolved
from medssl.training.resume import first_progress
from medssl.training.selection import TrainingSelection, select_scans
from medssl.training.supervised import Supervised
from medssl.training.validation import Validation
from medssl.training.versions import package_versions
from medssl.types import Card, Imported, Loss, Preprocess, TrainedOn, Tuned, UserError, ViewPlan, ViewSpec
from medssl.types.provenance import TrainingSubjects

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.heads.base import Head
    from medssl.training.events import Listener
    from medssl.training.settings import Examples, Training
    from medssl.types import LabelSchema, Note, Step

DOMAIN = "features"  # value domain of bags in cards


class SupervisedBags(Supervised):
    """The loss of a head on labeled bags.

    Args:
        network: The encoder that passes features through, and a head of bags.
        data: Which bags, and at most how many tiles of each (``view.size``).
        optimizer: How weights move.
    """

    pictures = None  # type: ignore[assignment]  # there is nothing to draw

    def __init__(self, network: Network, data: Examples, optimizer: FineTuning) -> None:
        super().__init__(network, data, optimizer)
        self.needs = ViewPlan((ViewSpec(tuple(data.view.size)),), data.sampling)

    @property
    def bag_head(self) -> BagHead:
        """The head."""
        return cast("BagHead", self.head)

    def forward(self, batch: Any, step: Step) -> Loss:
        """Loss of one micro-batch of bags."""
        loss, terms = self.bag_head.learn(batch, self.target(batch), step, step.counts)
        return Loss(loss, {"loss": loss.detach(), **terms})

    @torch.no_grad()
    def counts(self, batch: Any, step: Step) -> Tensor:
        """Counts of the head's loss."""
        del step
        return self.head.counts(self.target(batch))

    def target(self, batch: Any) -> Tensor:
        """What the head learns from."""
        return targets_of(batch.values, self.head.schema).to(batch.features.device)

    def after_step(self, step: Step) -> None:
        """Moves the teacher of the head, and averaged weights."""
        self.bag_head.after_step(step)
        super().after_step(step)


class BagValidation(Validation):
    """Judges the weights by bags that are never learned from, each with all of its tiles."""

    store: Any

    def judge(self, network: Network, scans: tuple[int, ...]) -> list[tuple[int, list[Any]]]:
        """For each bag its number and what the head answers."""
        device = next(network.parameters()).device
        return [(number, answer_of(network.head, whole_batch(self.store, number).to(device))) for number in scans]


@dataclass(frozen=True)
class BagTraining:
    """A training on bags that is ready to run.

    Attributes:
        loop: The loop, with fresh weights.
        config: The resolved configuration.
        training: How long and how large, as resolved.
        notes: What the first line tells.
        export: Writes the network.
        watching: Validates.
    """

    loop: TrainingLoop
    config: dict[str, Any]
    training: Training
    notes: list[str]
    export: Callable[[], None]
    watching: list[Listener]


def training_on_bags(
    store: Path,
    run: Path,
    head: Callable[[Encoder, LabelSchema], Head],
    data: Examples,
    training: Training,
    *,
    labels: float | None,
    optimizer: FineTuning,
    allow: Collection[str] = (),
) -> BagTraining:
    """Prepares the training of a head on a folder of bags.

    Args:
        store: Folder of bags.
        run: Folder of the run.
        head: Head of bags.
        data: Which labeled bags are used, and how.
        training: Length, batch size, precision, seed and output.
        labels: Number of labeled subjects, or a share of them; None takes all.
        optimizer: How the head moves.
        allow: "seen": continue although the encoder of the features was trained on subjects of the split "test".

    Raises:
        UserError: Something the user can put right.
    """
    opened = BagStore.open(store)
    refuse_settings(data, optimizer)
    schema = schema_for(opened, data.target, head)
    chosen = select_scans(opened, schema, data, labels, training.seed)
    leaks = leak_notes(opened, allow)
    made_by = {"in_channels": opened.facts.features, "source": opened.facts.encoder.digest}
    encoder = Imported(f"{Precomputed.__module__}.{Precomputed.__name__}", made_by)
    network = build(encoder, head, schema, training.seed)
    prepare(network, opened, chosen.learned)
    optimizer = replace(optimizer, probe=FrozenProbe())
    optimizer, training, settled = resolved(optimizer, training, RunFolder(run), network, [data.view.size])
    objective = SupervisedBags(network, data, optimizer)
    config: dict[str, Any] = as_data(
        {"encoder": encoder, "start": opened.digest, "head": head, "labels": labels, "data": data}
        | {"training": training, "optimizer": optimizer}
    )
    source = source_of(opened, chosen, schema, data, training)
    progress = first_progress(training, opened.digest)
    loop = TrainingLoop(objective, source, optimizer, steps=training.steps, progress=progress)
    card = make_card(config, encoder, opened, schema, chosen)
    every, bags = training.output.validate_every, cast("Any", opened)
    validation = BagValidation(bags, chosen.validated, data, every=every, keep=optimizer.keep)

    def export() -> None:
        save_network(run, objective.written, replace(card, step=loop.progress.step))

    notes = [*settled, *first_notes(opened, chosen, schema, card), *map(str, leaks)]
    return BagTraining(loop, config, training, notes, export, [validation])


def build(encoder: Imported, head: Callable[[Encoder, LabelSchema], Head], schema: LabelSchema, seed: int) -> Network:
    """The head with its first weights, which the seed decides.

    Raises:
        UserError: The head is none for bags, or answers something else than the target.
    """
    torch.manual_seed(keyed_seed(seed))
    passing = Precomputed(**encoder.init_args)
    made = head(passing, schema)
    if not isinstance(made, BagHead):
        message = f"{type(made).__name__} is a head for scans"
        raise UserError(message, key="head", expected="a head of bags, such as abmil, clam or transmil")
    if kind_of(schema).task != made.kind:
        message = f"the head is for {made.kind}, the target is {schema.name!r}: choose another head or data.target"
        raise UserError(message, key="head.answer")
    return Network(passing, made)


def refuse_settings(data: Examples, optimizer: FineTuning) -> None:
    """Refuses what has no effect on bags.

    Raises:
        UserError: Names the key.
    """
    if len(data.view.size) != 1:
        message = "a bag has one axis: the largest number of tiles in a training sample"
        raise UserError(message, key="data.view.size", got=list(data.view.size), expected="one number, such as 2048")
    refuse_no_tiles(data.view.size[0])
    if data.view != ViewSpec(tuple(data.view.size)):
        message = "features of bags are neither turned nor changed"
        raise UserError(message, key="data.view", hint="Give data.view.size alone, or take a recipe for bags")
    if optimizer.lora.rank:
        message = "bags have no encoder to adapt"
        raise UserError(message, key="optimizer.lora.rank", got=optimizer.lora.rank, hint="Set it to 0")


def leak_notes(store: BagStore, allow: Collection[str]) -> list[Note]:
    """Refuses features of an encoder that was trained on subjects of the split "test"; notes what is not known."""
    training = TrainingSubjects(pretrained=store.facts.encoder.subjects)
    test = store.subjects_of_split("test")
    name = "the encoder of the features"
    return refuse_leaks(test, training, allowed="seen" in allow, network=name, group="subjects of split 'test'")


def source_of(
    store: BagStore, chosen: TrainingSelection, schema: LabelSchema, data: Examples, training: Training
) -> BatchSource:
    """Batches of bags in the order of the run."""
    groups = balanced_groups(store, chosen.learned, schema, data)
    tiles = data.view.size[0]
    how = BagSampling(chosen.learned, groups, training.batch_size, training.seed, tiles, data.sampling)

    def crops(first: int, rank: int, world_size: int, workers: int = 0) -> Iterator[Any]:
        del workers
        return bag_batches(store, how, first, rank, world_size)

    def batch(raw: Any, device: torch.device, *, alone: bool = False) -> Any:
        del alone
        return raw.to(device)

    return BatchSource(crops, batch, training.accumulate, training.seed)


def first_notes(store: BagStore, chosen: TrainingSelection, schema: LabelSchema, card: Card) -> list[str]:
    """What the first line tells of bags and labels."""
    encoder = store.facts.encoder
    notes = [f"{store.facts.features} features of {encoder.name or encoder.digest}"]
    for scans, words in ((chosen.learned, "learn from"), (chosen.validated, "validate with")):
        tiles = sorted(store.tiles(number) for number in scans)
        count = len(store.distinct_subjects(scans))
        notes.append(f"{count} labeled subjects ({len(scans)} bags of {tiles[0]} to {tiles[-1]} tiles) to {words}")
        notes += target_notes(store, scans, schema, where=words)
    single = sum(store.tiles(number) == 1 for number in (*chosen.learned, *chosen.validated))
    notes += [f"{single} bags have one tile: look at their tissue masks"] if single else []
    return [*notes, *map(str, missing_note(card.tuned.trained_on if card.tuned else None))]


def make_card(
    config: dict[str, Any], encoder: Imported, store: BagStore, schema: LabelSchema, chosen: TrainingSelection
) -> Card:
    """What the network is; the step is filled in when it is written."""
    missing = kind_of(schema).missing([store.values(number) for number in chosen.learned], set(), schema)
    return Card(
        encoder=encoder,
        preprocess=Preprocess(),
        objective=None,
        index_digest=store.facts.index_digest,
        subjects=store.facts.encoder.subjects,
        step=0,
        versions=package_versions(synthetic=store.facts.synthetic),
        tuned=Tuned(
            head=imported(config["head"]),
            schema=schema,
            window=tuple(config["data"]["view"]["size"]),
            slice_axis=0,
            subjects=store.distinct_subjects((*chosen.learned, *chosen.validated)),
            trained_on=TrainedOn((), (DOMAIN,), (), missing),
            flip="none",
        ),
    )
