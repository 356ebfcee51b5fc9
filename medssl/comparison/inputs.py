"""What a comparison is made from: the conditions that all runs share, the arms with their weights, and the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medssl.comparison.plan import (
    digest_of_scored,
    first_notes,
    initial_weights_of,
    known_subjects,
    label_counts,
    missing_notes,
    refuse_known,
    refuse_unscored,
    refuse_useless_oracle,
)
from medssl.comparison.sources import check_foreign, encoder_arms, foreign_arms, refuse_mixed
from medssl.comparison.tuning import tuning_notes, validation_subjects
from medssl.data.index.scan_index import Index
from medssl.data.labels.selection import labeled_scans_of_index
from medssl.inference.predictor import Windows
from medssl.training.configuration import as_data
from medssl.training.hardware import precision_notes, precision_of
from medssl.training.label_targets import schema_for
from medssl.training.optim import FineTuning
from medssl.training.settings import Examples, Training
from medssl.types import Note
from medssl.views.mixing import Mixing

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from medssl.comparison.arms import Arm
    from medssl.comparison.tuning import Grid
    from medssl.data.store.store import Store
    from medssl.training.initial_weights import Allowed, InitialWeights


@dataclass(frozen=True)
class Conditions:
    """What all runs of a comparison share; the attributes are those of ``medssl compare``."""

    head: Callable[..., Any]
    data: Examples
    training: Training
    optimizer: FineTuning
    mixing: Mixing
    split: str
    windows: Windows
    allow: Sequence[Allowed]

    def recipe(self) -> dict[str, Any]:
        """The recipe of ``medssl finetune``."""
        keys = ("head", "data", "training", "optimizer", "mixing")
        recipe: dict[str, Any] = as_data({key: getattr(self, key) for key in keys})
        return recipe


@dataclass(frozen=True)
class Inputs:
    """Arms with their weights, and notes on them.

    Attributes:
        arms: Arms that the command names; baselines and oracles are added later.
        initial_weights: Of each arm, one for each of its paths.
        notes: What is unknown of them, and what was assumed.
    """

    arms: tuple[Arm, ...]
    initial_weights: Mapping[str, tuple[InitialWeights, ...]]
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Selection:
    """Numbers of labeled subjects, and what is scored.

    Attributes:
        counts: Numbers of labeled subjects, rising.
        scored: Digest of the test scans with their labels.
        notes: What a reader must know of them.
    """

    counts: tuple[int, ...]
    scored: str
    notes: tuple[Note, ...]


def inputs_of(
    encoders: Sequence[str],
    against: Sequence[str],
    store: Store,
    conditions: Conditions,
    *,
    runs: int,
    oracle: bool,
    trust: Collection[str],
) -> Inputs:
    """Reads the initial weights of every arm.

    Args:
        encoders: Runs of pretraining.
        against: Weights of other programs.
        store: The scans.
        conditions: What all runs share.
        runs: Runs for each arm and number of labels.
        oracle: Whether names of oracles are reserved.
        trust: Import paths of classes that may be built.

    Raises:
        UserError: Names the arm whose weights cannot be used.
    """
    arms = encoder_arms(encoders, oracle=oracle)
    foreign = foreign_arms(against, [arm.name for arm in arms], trust=trust, oracle=oracle)
    arms += [arm for arm, _ in foreign]
    optimizer, allow, size = conditions.optimizer, conditions.allow, conditions.data.view.size
    weights: dict[str, tuple[InitialWeights, ...]] = {}
    for arm in arms:
        weights[arm.name] = tuple(
            initial_weights_of(arm.name, path, store, (optimizer, arm.encoder), allow, trust, size)
            for path in arm.paths
        )
    notes: list[Note] = []
    for arm in arms:
        notes += refuse_mixed(arm.name, weights[arm.name], runs)
    for arm, facts in foreign:
        notes += check_foreign(arm, facts, weights[arm.name][0], store, allow)
    return Inputs(tuple(arms), weights, tuple(notes))


def selection_of(
    store: Store,
    index: Path,
    conditions: Conditions,
    inputs: Inputs,
    labels: Sequence[float | None],
    *,
    runs: int,
    oracle: bool,
    grid: Grid | None,
) -> Selection:
    """Checks labels and test scans.

    Args:
        store: The scans to train on.
        index: Index file of the scans to score.
        conditions: What all runs share.
        inputs: Arms with their weights.
        labels: Numbers of labeled subjects as the command has them.
        runs: Runs for each arm and number of labels.
        oracle: Whether an oracle is trained.
        grid: Settings from which validation subjects choose; None without.

    Raises:
        UserError: Labels, validation subjects or test subjects do not suffice, or a network would know test subjects.
    """
    data, split = conditions.data, conditions.split
    schema = schema_for(store, data.target, conditions.head)
    seeds = [conditions.training.seed + number for number in range(runs)]
    counts = label_counts(store, schema, data, labels, seeds)
    notes = [*first_notes(data, conditions.optimizer), *missing_notes(store, schema, data, counts, seeds)]
    if oracle:
        refuse_useless_oracle(store, schema, data, counts)
    if grid is not None:
        notes += tuning_notes(grid, validation_subjects(store, schema, data))
    with Index.open(index) as opened:
        scans = labeled_scans_of_index(opened, schema, split, None)
        refuse_unscored(scans, schema, split)
        if "seen" not in conditions.allow:
            refuse_known(scans, split, known_subjects(store, data, inputs.initial_weights))
        return Selection(tuple(counts), digest_of_scored(scans, opened.root), tuple(notes))


def fixed_precision(training: Training, recorded: Mapping[str, Any]) -> tuple[str, list[Note]]:
    """Precision of all runs of a comparison, and notes on it.

    "auto" is what the device of the first command computes in; later commands take the same, also on another machine.

    Args:
        training: The recipe's.
        recorded: Content of ``compare.yaml``.
    """
    if training.precision != "auto":
        return training.precision, [Note("precision", f"{text}.") for text in precision_notes(training)]
    here, options = precision_of(training), recorded["options"]
    if recorded["arms"] and "precision" not in options:  # of 0.1.0, whose runs say "auto"
        return "auto", [Note("precision", f"training.precision auto: new runs compute in {here}.")]
    fixed = str(options.get("precision", here))
    text = f"training.precision auto: all runs compute in {fixed}"
    text += "." if fixed == here else f", as the first command fixed it; this machine would take {here}."
    return fixed, [Note("precision", text)]
