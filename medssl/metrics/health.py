"""Whether training works, told without any label: measures of embeddings, and a verdict on a run by its measures.

A run is judged by a history of measurements, each the mean over the steps since the one before. Read from it are
"step", "loss", "gradient_norm", "learning_rate"; where an objective has them "chance" (the loss if nothing had been
learned), "uniformity" (``ops.similarity``, of what the loss compares), "correlation" (of predicted voxels with those
that were hidden), "teacher_entropy", "teacher_information", "teacher_mean_entropy" and "teacher_chance" (nats,
``nn.teacher``); and of the views and embeddings "input_flat", "embedding_spread", "embedding_variation",
"embedding_rank" and "embedding_not_finite". "So far" means since the start: what leaves the window of the newest
measurements is thinned, and the extremes stay (``shortened``). Rules, with the reasons of their thresholds (figures of
broken and of healthy runs: ``docs/results.md``):

    nothing      chance is 0: no pair of a batch is to be told apart
    input        half of the views or more hold one value, or their crops did before noise came on top: crops of air
                 alone are fewer in any store worth training on
    not finite   embedding_not_finite above 0: rows that hold NaN or infinity while the loss does not; no measure counts
                 them
    collapse     embedding_spread below 0.003, twice in a row: networks in training start at 0.03 to 0.5 and stay there
                 while they learn (0.006 untrained in evaluation mode); half precision alone makes 0.001. And
                 embedding_variation below 0.003 too: features that are large and the same in every scan, as large
                 transformers have them, make the spread small, but not the variation
                 Also a loss below 10 % of chance while the uniformity of what it compares is above -0.05, twice in a
                 row: objectives without negatives are at 0 where all embeddings are alike
    narrowing    embedding_rank below half of the highest so far, twice in a row: runs that learn keep three quarters of
                 it, learning rates 100 times too high leave a fifth. Where voxels are predicted (chance, but no
                 uniformity) once the run has settled, and where its loss is below 90 % of chance, or its correlation
                 0.1 or more, against the highest since it came there: transformers with random weights spread
                 embeddings in many directions of noise, and masked autoencoders leave them before they learn. At 98 %
                 or more nothing has been learned that could narrow
    sharpness    the first loss is 10 times chance or more: random weights give 1 to 1.7 at temperatures of 0.1 to 0.5,
                 1.2 where voxels are predicted; over when the loss comes below twice chance
    flatness     loss within 0.3 % of chance three times in a row while embeddings spread (uniformity below -0.5): the
                 loss does not feel them. A run that learns crosses this band once
    divergence   loss 10 times the lowest so far and twice chance (where that is not known, above the first: near 0 ten
                 times is nothing); or a gradient 100 times the median so far and 10 times the first one (a run that
                 leaves a plateau passes the former, not the latter)
    rising       more than half of what the loss had come down so far is lost, twice in a row, once settled: slow
                 divergence, which no jump shows. Not where a teacher sets the targets, whose loss may rise
    trivial      loss below 2 % of chance before the run has settled, and within its first 500 steps: before it can have
                 learned what is asked for. Contrast of regions that padding alone solves is there after 20 to 200
                 steps; healthy runs of this length are at 5 % or more
    stuck        loss not below 98 % of chance once the run has settled (200 steps after the warm-up): runs that learn
                 are at 95 % or less there, runs on views that have nothing in common at 99.9 % or more. Where voxels
                 are predicted, noise may leave little to predict (plateaus of 95 to 97 % with normalized cells): a
                 correlation of 0.1 or more, which is at best 1 % of the variance, shows that something is learned
    prototypes   teacher_mean_entropy below 0.4 nats twice in a row: all inputs together use fewer than 1.5 prototypes
    teacher      teacher_entropy at 99 % of log K or more (teacher_chance, else chance), once settled; or
                 teacher_information below 0.5 % of log K twice in a row: every input gets the same target. Runs that
                 learn are at 1.2 to 16 %, runs without centering at 0 (one prototype) to 0.4 % (the same few)

An input that is constant, and a batch with nothing to tell apart, explain everything else and are told alone.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Measures = Mapping[str, float]

FEWEST = 3  # measurements that a run is judged by: what is wrong must be seen twice or three times
SETTLING = 200  # steps after the warm-up from which on the loss is judged
FLAT_INPUT, COLLAPSED, SHARP, UNFELT, STUCK, UNIFORM, UNINFORMED = 0.5, 0.003, 10.0, 0.003, 0.98, 0.99, 0.005
NARROW, LEARNING, REGAINED = 0.5, 0.9, 0.5
TRIVIAL, EARLY = 0.02, 500  # share of chance; step up to which it cannot have been learned
ONE_PROTOTYPE = 0.4  # nats
AGREED, ONE_DIRECTION = 0.1, -0.05  # share of chance; uniformity of projected rows
CORRELATED = 0.1  # of predicted and hidden voxels
NEWEST, OLDER = 100, 100  # measurements that are held: the newest, and of those before them as many thinned out


class Alarm(NamedTuple):
    """One thing that is wrong: its short name, and what it is, why, and what to change."""

    kind: str
    message: str


# --- the history of a run


def shortened(history: Sequence[Measures]) -> list[Measures]:
    """A history that does not grow without end: the first row, the newest, the extremes, and others evenly spaced.

    What is left depends on the rows alone, so that a run that was stopped holds what an uninterrupted one does.
    """
    rows = list(history)
    extremes = {id(row) for row in _extremes(rows)} if len(rows) > 1 + OLDER + NEWEST else set()
    while len(rows) > 1 + OLDER + NEWEST:
        places = [place for place in range(1, len(rows) - NEWEST) if id(rows[place]) not in extremes]
        del rows[min(places, key=lambda place: rows[place + 1]["step"] - rows[place - 1]["step"])]
    return rows


def _extremes(history: Sequence[Measures]) -> list[Measures]:
    """The rows of the lowest loss, of the lowest share of chance, and of the highest ranks, of all and of learning."""
    rows = history[1:]
    ranked = [row for row in rows if "embedding_rank" in row]
    learning = [row for row in ranked if _learns(row)]
    lowest = [min(rows, key=lambda row: row["loss"]), min(rows, key=_share)]
    return [*lowest, *(max(few, key=lambda row: row["embedding_rank"]) for few in (ranked, learning) if few)]


# --- the verdict on a run


def alarms(history: Sequence[Measures], *, settled: int) -> list[Alarm]:
    """What is wrong with a run now; nothing where it is well, or too young to tell.

    Args:
        history: Measurements in the order of their steps, the first one of step 1.
        settled: Step from which on a loss that has not moved is an alarm.
    """
    now = history[-1]
    if (flat := now.get("input_flat", 0.0)) >= FLAT_INPUT:
        message = (
            f"the input is constant: {flat:.0%} of the views hold one value: look at pictures/, then check the store "
            "and the intensity rule of its preprocessing"
        )
        return [Alarm("input", message)]
    if now.get("chance") == 0:
        message = (
            "a network that knows nothing has a loss of 0: there is nothing to tell apart in a batch; take a larger "
            "training.batch_size, or look at what the objective says of its pairs"
        )
        return [Alarm("nothing", message)]
    rules = (_collapse, _compared, _sharpness, _flatness, _divergence)
    candidates = [_not_finite(now), *(rule(history) for rule in rules), _narrowing(history, settled)]
    candidates += [_prototypes(history), _trivial(now, settled)]
    if now["step"] >= settled:
        candidates += [_rising(history), _stuck(history), _teacher(history)]
    kinds = {alarm.kind for alarm in candidates if alarm}
    explained = {"stuck"} if kinds - {"stuck"} else set()
    explained |= {"narrowing", "trivial"} if "collapse" in kinds else set()
    explained |= {"teacher", "trivial", "collapse", "narrowing"} if "prototypes" in kinds else set()
    explained |= {"rising"} if "divergence" in kinds else set()
    return [alarm for alarm in candidates if alarm and alarm.kind not in explained]


def _not_finite(now: Measures) -> Alarm | None:
    if not (share := now.get("embedding_not_finite", 0.0)):
        return None
    message = (
        f"{share:.1%} of the embeddings are not finite while the loss is, and no measure counts them; lower "
        f"optimizer.learning_rate ({_rate(now)}), or take bf16 where training.precision is fp16"
    )
    return Alarm("not finite", message)


def _collapse(history: Sequence[Measures]) -> Alarm | None:
    known = [row for row in history[1:] if "embedding_spread" in row][-2:]
    if len(known) < 2 or max(row["embedding_spread"] for row in known) >= COLLAPSED:
        return None
    if max(row.get("embedding_variation", 0.0) for row in known) >= COLLAPSED:
        return None
    now = known[-1]
    message = (
        f"embeddings have collapsed to {now['embedding_rank']:.1f} of {now['embedding_width']:.0f} directions (spread "
        f"{now['embedding_spread']:.2g}): all scans look alike to the encoder; lower optimizer.learning_rate "
        f"({_rate(now)}), and compare with objectives that push embeddings apart"
    )
    return Alarm("collapse", message)


def _compared(history: Sequence[Measures]) -> Alarm | None:
    """A loss of almost nothing because all that it compares has one direction; for objectives without negatives."""
    last = [row for row in history[1:] if "uniformity" in row and "chance" in row][-2:]
    if len(last) < 2 or any(_share(row) >= AGREED or row["uniformity"] <= ONE_DIRECTION for row in last):
        return None
    message = (
        f"what the loss compares has collapsed: the loss is {_share(last[-1]):.1%} of that of unrelated embeddings, "
        f"and all projected scans look alike; lower optimizer.learning_rate ({_rate(last[-1])}), take a larger "
        "training.batch_size, or an objective with negatives"
    )
    return Alarm("collapse", message)


def _narrowing(history: Sequence[Measures], settled: int) -> Alarm | None:
    known, now = [row for row in history[1:] if "embedding_rank" in row], history[-1]
    if "chance" in now and "uniformity" not in now:
        if now["step"] < settled or _share(now) >= STUCK:
            return None
        if _learns(now):
            first = next((place for place, row in enumerate(known) if _learns(row)), len(known))
            known = known[first:]
    if len(known) < 3:
        return None
    widest, now = max(known, key=lambda row: row["embedding_rank"]), known[-1]
    if max(row["embedding_rank"] for row in known[-2:]) >= NARROW * widest["embedding_rank"]:
        return None
    message = (
        f"embeddings use ever fewer directions: {now['embedding_rank']:.1f}, down from {widest['embedding_rank']:.1f} "
        f"at step {widest['step']:.0f}; lower optimizer.learning_rate ({_rate(now)})"
    )
    return Alarm("narrowing", message)


def _sharpness(history: Sequence[Measures]) -> Alarm | None:
    first, now = history[0], history[-1]
    if "chance" not in first or _share(first) < SHARP or _share(now) < 2:
        return None
    remedy = (
        "raise the temperature" if "uniformity" in now else "check the intensity rule and the objective's own settings"
    )
    message = (
        f"the first loss was {_share(first):.0f} times that of a network that knows nothing ({first['loss']:.3g} "
        f"against {first['chance']:.3g}): single differences outweigh all others; {remedy}"
    )
    return Alarm("sharpness", message)


def _flatness(history: Sequence[Measures]) -> Alarm | None:
    last = [row for row in history[1:] if "chance" in row and "uniformity" in row][-3:]
    felt = [abs(_share(row) - 1) >= UNFELT or row["uniformity"] >= -0.5 for row in last]
    if len(last) < 3 or any(felt):
        return None
    now = last[-1]
    message = (
        f"embeddings differ, but the loss does not feel it: it stays within {UNFELT:.1%} of {now['chance']:.4g}, that "
        "of equal embeddings; lower the temperature"
    )
    return Alarm("flatness", message)


def _divergence(history: Sequence[Measures]) -> Alarm | None:
    *before, now = history
    if not before:
        return None
    lowest = min(before, key=lambda row: row["loss"])
    norms = [row["gradient_norm"] for row in before if "gradient_norm" in row]
    risen = _share(now) > 2 if "chance" in now else now["loss"] > before[0]["loss"]
    jumped = now["loss"] > 10 * abs(lowest["loss"]) and risen
    grown = bool(norms) and now.get("gradient_norm", 0.0) > max(100 * median(norms), 10 * norms[0])
    if not jumped and not grown:
        return None
    what = (
        f"the loss went up from {lowest['loss']:.3g} (step {lowest['step']:.0f}) to {now['loss']:.3g}"
        if jumped
        else f"the gradient's norm grew from {median(norms):.3g} to {now['gradient_norm']:.3g}"
    )
    return Alarm("divergence", f"training diverges: {what}; lower optimizer.learning_rate ({_rate(now)})")


def _rising(history: Sequence[Measures]) -> Alarm | None:
    now, last = history[-1], history[-2:]
    if "chance" not in now or "teacher_entropy" in now or len(history) < 3:
        return None
    lowest = min(history[1:], key=_share)
    gained = 1 - _share(lowest)
    if gained < 1 - LEARNING or max(1 - _share(row) for row in last) >= REGAINED * gained:
        return None
    message = (
        f"the loss rises again: {_share(now):.0%} of that of a network that knows nothing, {_share(lowest):.0%} at "
        f"step {lowest['step']:.0f}; lower optimizer.learning_rate ({_rate(now)}), continue from an earlier checkpoint"
    )
    return Alarm("rising", message)


def _trivial(now: Measures, settled: int) -> Alarm | None:
    if now["step"] >= min(settled, EARLY) or "chance" not in now or _share(now) >= TRIVIAL:
        return None
    message = (
        f"after {now['step']:.0f} steps the loss is {_share(now):.1%} of that of a network that knows nothing, before "
        "it can have learned what is asked for: something else solves the task. Likely causes: padding or the border "
        "of a view shows places, the two views are the same, scans differ in size or intensity alone, a batch has too "
        "few samples to compare, or the network sees hidden voxels; look at pictures/, make the changes of the views "
        "stronger, and judge by a probe"
    )
    return Alarm("trivial", message)


def _prototypes(history: Sequence[Measures]) -> Alarm | None:
    last = [row for row in history[1:] if "teacher_mean_entropy" in row][-2:]
    if len(last) < 2 or max(row["teacher_mean_entropy"] for row in last) >= ONE_PROTOTYPE:
        return None
    used, count = (np.exp(last[-1].get(name, 0.0)) for name in ("teacher_mean_entropy", "teacher_chance"))
    message = (
        f"the teacher gives every input the same target: all inputs together use {used:.1f} of {count:.0f} prototypes; "
        "raise the teacher temperature, or divide the batch equally (sinkhorn)"
    )
    return Alarm("prototypes", message)


def _stuck(history: Sequence[Measures]) -> Alarm | None:
    now = history[-1]
    if "chance" not in now or _share(now) < STUCK or ("uniformity" not in now and _predicts(now)):
        return None
    level = f"after {now['step']:.0f} steps the loss is {now['loss']:.4g}, that of a network that knows nothing is"
    if now.get("uniformity", -1.0) > -0.5:
        cause = (
            "all views are projected to nearly the same place, so that the two views of a scan may have too little in "
            "common (look at pictures/, make the changes weaker), or the learning rate may be too high: lower "
            f"optimizer.learning_rate ({_rate(now)})"
        )
    else:
        cause = f"change optimizer.learning_rate ({_rate(now)}) tenfold, and look at pictures/ for what is asked for"
    return Alarm("stuck", f"{level} {now['chance']:.4g}: {cause}")


def _teacher(history: Sequence[Measures]) -> Alarm | None:
    now = history[-1]
    limit, entropy = now.get("teacher_chance", now.get("chance", 0.0)), now.get("teacher_entropy", 0.0)
    if limit <= 0:
        return None
    if entropy >= UNIFORM * limit:
        message = (
            f"teacher output is uniform: its entropy is {entropy:.3g}, at log K = {limit:.3g}; "
            "lower the teacher temperature"
        )
        return Alarm("teacher", message)
    last = [row["teacher_information"] for row in history[1:] if "teacher_information" in row][-2:]
    if len(last) < 2 or max(last) >= UNINFORMED * limit:
        return None
    remedy = "lower the teacher temperature" if entropy > limit / 2 else "raise the teacher temperature"
    message = (
        f"the teacher gives every input the same target: targets of different inputs differ by {last[-1]:.2g} of "
        f"{limit:.3g} nats, their entropy is {entropy:.3g}; {remedy}, or divide the batch equally (sinkhorn)"
    )
    return Alarm("teacher", message)


def _learns(row: Measures) -> bool:
    """Whether a run has begun to learn."""
    return _share(row) < LEARNING or ("uniformity" not in row and _predicts(row))


def _predicts(row: Measures) -> bool:
    """Whether predicted voxels have something of the hidden ones."""
    return _share(row) < 1 and row.get("correlation", 0.0) >= CORRELATED


def _share(row: Measures) -> float:
    """Loss as a share of chance; infinite where chance is not known, 1 where there was nothing to be learned."""
    if "chance" not in row:
        return np.inf
    return row["loss"] / row["chance"] if row["chance"] > 0 else 1.0


def _rate(row: Measures) -> str:
    return f"now {row['learning_rate']:.2g}" if "learning_rate" in row else "its value is in config.yaml"
