"""The verb ``pretrain``: a store and an objective become an encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save as to_safetensors

from medssl.data.loading.loader import small_scans
from medssl.data.store.store import Store, differences
from medssl.encoders.base import Encoder
from medssl.encoders.weights import save_encoder
from medssl.io.atomic_write import atomic_write
from medssl.io.permissions import owner_only
from medssl.objectives.base import Objective
from medssl.probing.online_probe import OnlineProbeListener
from medssl.training import hardware
from medssl.training.batch_source import batches_of_store, repeated_subjects
from medssl.training.checkpoint import RunFolder
from medssl.training.configuration import as_data, imported
from medssl.training.continuing import REST, load_initial_weights, weights_of_former_start
from medssl.training.events import Listener
from medssl.training.health_monitor import Health, settled_after
from medssl.training.initial_weights import InitialWeights
from medssl.training.loop import TrainingLoop, keyed_seed
from medssl.training.optim import Optimization
from medssl.training.resolved import resolved
from medssl.training.results import TrainingResult
from medssl.training.resume import first_progress
from medssl.training.run import refuse_hardware
from medssl.training.run import run as train
from medssl.training.settings import Loading, OnlineProbe, Training
from medssl.training.versions import package_versions
from medssl.training.whole_image_statistics import WholeImageStatistics
from medssl.types import Card
from medssl.types.cards import Pretraining
from medssl.types.provenance import Provenance

if TYPE_CHECKING:
    from torch import Tensor


@owner_only()
def pretrain(  # noqa: PLR0913 (the keys of a command line)
    *,
    store: Path,
    run: Path,
    encoder: Callable[[], Encoder],
    objective: Callable[[Encoder], Objective],
    training: Training,
    optimizer: Optimization = Optimization(),  # noqa: B008 (frozen)
    data: Loading = Loading(),  # noqa: B008 (frozen)
    probe: OnlineProbe = OnlineProbe(),  # noqa: B008 (frozen)
    pretrained: Path | None = None,
    pretrained_minimum: float = 0.9,
) -> TrainingResult:
    """Pretrain an encoder on the scans of a store, or continue a run that was stopped.

    Args:
        store: Folder written by ``medssl cache``.
        run: Folder of the run. If it holds a run of the same configuration, training continues from its last
            checkpoint.
        encoder: Network to pretrain: a preset or an import path.
        objective: Objective to pretrain with: a preset or an import path.
        training: Length, batch size, precision, seed and output.
        optimizer: Optimizer, learning rate and weight decay.
        data: Which scans are read, and how.
        probe: Probes on labels during pretraining. The encoder is not trained on them.
        pretrained: Run folder or file of weights to start from. A run gives its encoder and, for the same objective,
            its heads and teacher; a file (safetensors or torch) gives the encoder. Channels, 2D kernels and tables of
            positions are adapted.
        pretrained_minimum: Smallest share of the encoder's keys that ``pretrained`` must fill, 0 to 1.

    Returns:
        The run as it is now.

    Raises:
        UserError: Something the user can put right.
    """
    folder = RunFolder(run)
    refuse_hardware(training)
    torch.manual_seed(keyed_seed(training.seed))
    network = objective(encoder())  # refuses sizes that do not fit, before any data is touched
    sizes = [view.size for view in network.needs.views]
    optimizer, training, settled = resolved(optimizer, training, folder, network, sizes)
    config: dict[str, Any] = as_data(
        {"encoder": encoder, "objective": objective, "training": training, "optimizer": optimizer, "data": data}
    )
    made = imported(config["encoder"])
    initial = weights_of_former_start(folder, pretrained, made) or load_initial_weights(
        network, pretrained, pretrained_minimum, made
    )
    config |= {"pretrained": initial.digest if initial.weights else None, "probe": as_data(probe)}
    opened = Store.open(store, preprocess=data.preprocess)
    if data.sampling is not None:
        sampling = data.sampling.made_in(network.needs.sampling, type(network).__name__)
        network.needs = replace(network.needs, sampling=sampling)
    plan = network.needs
    sizes = [view.size for view in plan.views if view.area is None]  # others are as large as their scan
    largest = tuple(map(max, zip(*sizes, strict=True))) if sizes else (0,) * len(plan.views[0].size)
    small = small_scans(opened, largest, split=data.split, slice_axis=plan.sampling.slice_axis)
    source = batches_of_store(opened, plan, training, workers=data.workers, split=data.split)
    progress = first_progress(training, opened.digest)
    loop = TrainingLoop(network, source, optimizer, steps=training.steps, progress=progress)
    statistics = WholeImageStatistics(network, source, training.output.whole_image_batches)
    loop.statistics = statistics if statistics.needed else None

    def export() -> None:
        card = make_card(config, opened, initial, loop.progress.step)
        write_weights(run, network, statistics.noted_in(card))

    watching: list[Listener] = [
        Health(every=training.output.health_every, settled=settled_after(loop.horizon, optimizer.warmup))
    ]
    if probe.target is not None:
        watching.append(OnlineProbeListener(opened, plan, probe, half=hardware.precision_of(training) != "fp32"))
    notes = [f"{small} scans are smaller than the view and are padded"] if small else []
    notes += repeated_subjects(opened, plan, training, data.split)
    notes = [*settled, *initial.notes, *other_rules(initial, opened), *statistics.notes, *notes]
    return train(loop, folder, config, training, data=data, notes=notes, export=export, watching=watching)


def other_rules(initial: InitialWeights, opened: Store) -> list[str]:
    """A note where the first weights are of scans that other rules stored."""
    if initial.card is None or initial.card.preprocess.digest() == opened.preprocess.digest():
        return []
    keys = "; ".join(differences(asdict(initial.card.preprocess), asdict(opened.preprocess)))
    return [f"the first weights are of scans that other rules stored: {keys}"]


def make_card(config: dict[str, Any], opened: Store, initial: InitialWeights, step: int) -> Card:
    """What the weights of a step are; the provenance of the initial weights is part of theirs."""
    return Card(
        encoder=imported(config["encoder"]),
        preprocess=opened.preprocess,
        objective=Pretraining(
            **vars(imported(config["objective"])), learning_rate=config["optimizer"]["learning_rate"]
        ),
        index_digest=opened.index_digest,
        subjects=initial.provenance | Provenance(opened.subjects_of_split(config["data"]["split"])),
        step=step,
        versions=package_versions(synthetic=opened.synthetic),
    )


def write_weights(folder: Path, objective: Objective, card: Card) -> None:
    """Writes the encoder with its card, other modules worth keeping, and all the rest of the objective to continue."""
    exported = objective.exported()
    for name, module in exported.items():
        if name != "encoder":
            write_tensors(folder / f"{name}.safetensors", module.state_dict())
    rest = {name: value for name, value in objective.state_dict().items() if not name.startswith("encoder.")}
    write_tensors(folder / REST, rest)
    save_encoder(folder, exported["encoder"], card)


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors as safetensors, the whole file or nothing."""
    plain = {name: value.detach().clone().contiguous().cpu() for name, value in tensors.items()}
    atomic_write(file, lambda stream: stream.write(to_safetensors(plain)))
