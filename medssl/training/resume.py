"""Goes on with a run that was stopped, or refuses to where the rest would differ from an uninterrupted run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medssl.ops.schedules import cosine
from medssl.training.checkpoint import BEFORE_DECAY, Progress, load_state
from medssl.training.distributed import layout
from medssl.types import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from medssl.objectives.base import Objective
    from medssl.training.checkpoint import RunFolder
    from medssl.training.loop import TrainingLoop
    from medssl.training.settings import Training


def first_progress(training: Training, store: str) -> Progress:
    """The progress of a run before its first step, on a store of this digest."""
    together = training.batch_size * layout().world_size
    return Progress(0, samples_of_step(training), store, steps=training.steps, together=together)


def samples_of_step(training: Training) -> int:
    """Samples of an optimizer step, over all processes and micro-batches."""
    return training.batch_size * training.accumulate * layout().world_size


def resume(loop: TrainingLoop, folder: RunFolder) -> tuple[dict[str, Any] | None, list[str]]:
    """Takes over the weights and the progress of a run that was stopped.

    Returns:
        The state for ``TrainingLoop.run``, None where there is no checkpoint; and what the first line of the run says:
        how a longer run changes the learning rate, or from which step it is prolonged.

    Raises:
        UserError: The store, the number of samples of a step, or what a loss compares is another one; or a run that is
            prolonged lacks the checkpoint from before the fall of its learning rate.
    """
    state = folder.state()
    if state is None:
        return None, []
    former, now = state["progress"], loop.progress
    if former.store != now.store:
        message = (
            f"{folder.path.name}/ was trained on another store (or this one has changed): choose another run folder"
        )
        raise UserError(message)
    if former.global_batch != now.global_batch:
        message = (
            f"a step of {folder.path.name}/ has {former.global_batch} samples, this command's {now.global_batch}: "
            "keep training.batch_size x training.accumulate x processes as it was"
        )
        raise UserError(message)
    refuse_other_comparison(loop, former, folder.path.name)
    notes = stretched(loop, former)
    if has_decayed(loop, former):
        state = load_before_decay(loop, folder, former)
        former = state["progress"]
    former.steps, former.together = now.steps, now.together
    take_over(loop.objective, state["objective"], folder.path.name)
    loop.progress = former
    return state, notes


def take_over(objective: Objective, tensors: dict[str, Tensor], name: str) -> None:
    """Loads the weights of a checkpoint into the objective.

    Raises:
        UserError: A version that built the objective differently wrote them; says how many keys differ.
    """
    present = objective.state_dict()
    missing = [key for key in present if key not in tensors]
    unexpected = [key for key in tensors if key not in present]
    unfit = [key for key in tensors if key in present and present[key].shape != tensors[key].shape]
    if differing := [*missing, *unexpected, *unfit]:
        message = (
            f"the checkpoint of {name}/ is of another form of {type(objective).__name__}: {len(missing)} keys missing, "
            f"{len(unexpected)} unexpected, {len(unfit)} of another shape (first: {differing[0]})"
        )
        hint = f"Start another run folder with the encoder of this one: pretrained {name}, or use the former version."
        raise UserError(message, hint=hint)
    objective.load_state_dict(tensors)


def refuse_other_comparison(loop: TrainingLoop, former: Progress, name: str) -> None:
    """Refuses another split of a step into micro-batches, where the loss or the order depends on it.

    Raises:
        UserError: Says how many samples were compared with each other, and how many would be.
    """
    sampling, now = loop.objective.needs.sampling, loop.progress
    if former.together in (0, now.together) or not (loop.objective.compares_samples or sampling.distinct_subjects):
        return
    what = "compares the samples of a micro-batch with each other" if loop.objective.compares_samples else ""
    what = what or "takes no subject twice into a micro-batch (distinct_subjects)"
    message = (
        f"{type(loop.objective).__name__} {what}: {name}/ has {former.together} of them, this command "
        f"{now.together}; keep training.batch_size x processes as it was"
    )
    raise UserError(message)


def has_decayed(loop: TrainingLoop, former: Progress) -> bool:
    """Whether a run that is prolonged has trained beyond the constant part of its learning rate."""
    start = loop.settings.decay_start(former.steps)
    return start is not None and former.steps not in (0, loop.steps) and former.step > start


def load_before_decay(loop: TrainingLoop, folder: RunFolder, former: Progress) -> dict[str, Any]:
    """The state of a run when its learning rate began to fall.

    Raises:
        UserError: It is missing.
    """
    start, file = loop.settings.decay_start(former.steps), folder.checkpoints / BEFORE_DECAY
    state = load_state(file) if file.is_file() else None
    if state is None or state["progress"].step != start:
        message = (
            f"the learning rate of {folder.path.name}/ has fallen since step {start}, and checkpoints/{BEFORE_DECAY} "
            "of that step is missing: the run cannot be prolonged"
        )
        hint = "Start a new run from its weights (the key pretrained)."
        raise UserError(message, key="training.extend", hint=hint)
    return state


def stretched(loop: TrainingLoop, former: Progress) -> list[str]:
    """What more steps do to the learning rate and the weight decay of a run that goes on."""
    if former.steps in (0, loop.steps):
        return []
    settings, longer = loop.settings, f"{loop.steps} steps instead of {former.steps}"
    start, end = settings.decay_start(former.steps), settings.decay_start(loop.steps)
    if start is not None:
        back = f"going back to step {start}, before the learning rate fell: the weights and the log of later steps are "
        where = f"{back}replaced" if has_decayed(loop, former) else f"the learning rate falls from step {end} on"
        return [f"{longer}: {where}"]
    then, now = (former.step / steps for steps in (former.steps, loop.steps))
    rates = [settings.rate(progress, encoder=False) for progress in (then, now)]
    decays = [cosine(progress, *settings.weight_decay) for progress in (then, now)]
    note = f"{longer} stretch the schedule: the learning rate goes from {rates[0]:.3g} to {rates[1]:.3g}"
    return [note + (f", the weight decay from {decays[0]:.3g} to {decays[1]:.3g}" if decays[0] != decays[1] else "")]
