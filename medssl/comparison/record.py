"""The file ``compare.yaml``: what a comparison's folder is held to. It names no path.

It holds the recipe, the initial weights of each arm, the encoder of each from-scratch baseline, which runs were
planned, the grid of learning rates and what each arm chose from it, and after how many runs p-values were shown.
Encoders, numbers of labels and runs can therefore be added by later commands in any order, and a verdict says how often
p-values were looked at.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import yaml

from medssl.comparison.arms import RANDOM, Arm, Run, Study, encoder_digest
from medssl.io.atomic_write import atomic_write
from medssl.io.documents import read_yaml
from medssl.training.checkpoint import FREE_KEYS, differing
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CONFIG = "compare.yaml"
RECORDED = (  # beside the recipe
    *("arms", "kinds", "encoders", "baselines", "minutes", "planned", "looks"),
    *("options", "rates"),
)
FORMER_KEYS = {"twins": "baselines", "asked": "planned"}  # of 0.1.0
FREE = (*FREE_KEYS, "windows.batch_size", "windows.accelerator")  # how fast a scan is scored, not how well
ELSEWHERE = "Choose another folder for results."


def read_recorded(out: Path) -> dict[str, Any]:
    """Content of ``compare.yaml``; one of an earlier version is completed from the runs.

    Raises:
        UserError: It is damaged, or missing from a folder with runs; or an earlier version left runs of different
            encoders in one folder.
    """
    file = out / CONFIG
    empty: dict[str, Any] = {key: {} for key in RECORDED}
    if not file.exists():
        if (out / "runs").exists():
            message = f"{out}/ holds runs but no {CONFIG}, which names their recipe and their initial weights"
            raise UserError(message, key="out", hint=f"Put the file back. {ELSEWHERE}")
        return empty
    try:
        content = read_yaml(file)
    except (yaml.YAMLError, ValueError):
        content = None
    if isinstance(content, dict):
        content = {FORMER_KEYS.get(key, key): value for key, value in content.items()}
    if not is_complete(content):
        message = f"{file} is damaged (empty, cut off or edited)"
        raise UserError(message, key="out", hint=f"Put a whole one back. {ELSEWHERE}")
    recorded: dict[str, Any] = empty | content
    if recorded["arms"] and not recorded["encoders"]:
        _complete(recorded, out)
    return recorded


def is_complete(content: object) -> bool:
    """Whether ``compare.yaml`` has all that is read of it: a recipe with its batch, and the keys beside it."""
    if not isinstance(content, dict) or "arms" not in content or not isinstance(content.get("training"), dict):
        return False
    return {"batch_size", "accumulate"} <= content["training"].keys() and all(
        isinstance(content.get(key, {}), dict) for key in RECORDED
    )


def record_plan(
    out: Path, held: dict[str, Any], arms: Sequence[Arm], planned: Sequence[Run], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Records the recipe and the arms, or holds the command to those recorded; arms and runs may be added.

    Args:
        out: Folder of the comparison.
        held: The recipe, what is trained on and scored, and the digest of each baseline's encoder (``encoders``).
        arms: Of this command.
        planned: Runs of this command.
        options: What a later command may add, but not change: the grid of learning rates, steps of the oracle.

    Returns:
        What ``compare.yaml`` now holds.

    Raises:
        UserError: Names the keys that differ.
    """
    recorded, held = read_recorded(out), dict(held)
    encoders = held.pop("encoders")
    digests = {arm.name: arm.digests[0] if len(arm.digests) == 1 else list(arm.digests) for arm in arms}
    baselines = {arm.name: arm.baseline for arm in arms if arm.baseline}
    now = {"arms": recorded["arms"] | digests, "baselines": recorded["baselines"] | baselines}
    then = {"arms": now["arms"] | recorded["arms"], "baselines": now["baselines"] | recorded["baselines"]}
    now["options"] = recorded["options"] | options
    then["options"] = now["options"] | recorded["options"]
    if (out / CONFIG).exists():
        former = {key: value for key, value in recorded.items() if key not in RECORDED}
        if changes := differing(_with_batch(former) | then, _with_batch(held) | now, FREE):
            message = f"{out}/ holds another comparison: {changes}"
            raise UserError(message, key="out", hint=ELSEWHERE)
    now["encoders"] = recorded["encoders"] | encoders
    now["kinds"] = recorded["kinds"] | {arm.name: arm.kind for arm in arms if arm.kind in {"oracle", "foreign"}}
    now["minutes"] = recorded["minutes"] | {arm.name: arm.minutes for arm in arms if arm.minutes is not None}
    now["planned"] = {name: dict(counts) for name, counts in recorded["planned"].items()}
    for run in planned:
        counts = now["planned"].setdefault(run.arm.name, {})
        counts[run.labels] = max(counts.get(run.labels, 0), run.number + 1)
    now |= {"rates": recorded["rates"], "looks": recorded["looks"]}
    _write(out, held | now)
    return now


def record_rates(out: Path, rates: Mapping[str, Mapping[int, str]]) -> dict[str, dict[int, str]]:
    """Records the setting that each arm chose at each number of labels; one that is recorded stays.

    Returns:
        All that are recorded now.
    """
    recorded = read_recorded(out)
    for arm, chosen in rates.items():
        recorded["rates"][arm] = dict(chosen) | recorded["rates"].get(arm, {})
    _write(out, recorded)
    result: dict[str, dict[int, str]] = recorded["rates"]
    return result


def record_looks(out: Path, runs: Mapping[str, Mapping[int, int]]) -> list[int]:
    """Records after how many runs p-values are shown; adding runs until a difference shows finds too many.

    Args:
        out: Folder of the comparison.
        runs: Of each arm, how many runs give a verdict, by the number of labeled subjects.

    Returns:
        Numbers of runs, rising, after which p-values of the same arm and number of labeled subjects were shown earlier.
    """
    recorded, earlier = read_recorded(out), set[int]()
    for arm, counts in runs.items():
        for labels, count in counts.items():
            looks = recorded["looks"].setdefault(arm, {}).setdefault(labels, [])
            earlier |= {number for number in looks if number < count}
            if count not in looks:
                looks.append(count)
    _write(out, recorded)
    return sorted(earlier)


def study_of(out: Path, recorded: Mapping[str, Any], arms: Sequence[Arm], requested: Sequence[Run]) -> Study:
    """This command's arms and runs together with those of earlier commands, in the order in which they came.

    Args:
        out: Folder of the comparison.
        recorded: Content of ``compare.yaml``.
        arms: Of this command.
        requested: Runs of this command.
    """
    named = {arm.name: arm for arm in arms}
    every = [named.get(name) or _earlier(name, recorded) for name in recorded["arms"]]
    known = {(run.arm.name, run.labels, run.number) for run in requested}
    earlier = []
    for arm in every:
        counts = recorded["planned"].get(arm.name, {})
        places = {(labels, number) for labels, count in counts.items() for number in range(count)}
        for folder in (out / "runs" / arm.name).glob("*-*"):
            if match := re.fullmatch(r"(\d+)-(\d+)", folder.name):
                places.add((int(match[1]), int(match[2])))
        earlier += [Run(arm, *place) for place in sorted(places) if (arm.name, *place) not in known]
    return Study(out, tuple(every), tuple(requested), tuple(earlier), rates=recorded["rates"])


def _complete(recorded: dict[str, Any], out: Path) -> None:
    """Enters encoders and baselines, which early versions did not record, from the runs."""
    kinds = {name: _kind_of_runs(out, name) for name in recorded["arms"]}
    scratch = {name for name, digest in recorded["arms"].items() if digest == RANDOM}
    recorded["encoders"] = {name: kinds[name] for name in recorded["arms"] if name in scratch and kinds[name]}
    baselines = {kind: name for name, kind in recorded["encoders"].items()}
    recorded["baselines"] = {
        name: baselines[kinds[name]] for name in recorded["arms"] if name not in scratch and kinds[name] in baselines
    }


def _earlier(name: str, recorded: Mapping[str, Any]) -> Arm:
    """An arm that this command does not name."""
    digests = recorded["arms"][name]
    digests = tuple(digests) if isinstance(digests, list) else (digests,)
    scratch = digests == (RANDOM,)
    minutes = 0.0 if scratch else recorded["minutes"].get(name)
    kind = recorded["kinds"].get(name, "scratch" if scratch else "pretrained")
    return Arm(name, (), recorded["baselines"].get(name, ""), minutes, digests, kind)


def _write(out: Path, recorded: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(dict(recorded), sort_keys=False)
    atomic_write(out / CONFIG, lambda stream: stream.write(text.encode()))


def _kind_of_runs(out: Path, name: str) -> str:
    """The kind of encoder of an arm's runs; "" where none has started."""
    runs_of_kind = defaultdict(list)
    for file in sorted((out / "runs" / name).glob("*/config.yaml")):
        config = read_yaml(file)
        runs_of_kind[encoder_digest(config["encoder"])].append(file.parent.name)
    if len(runs_of_kind) > 1:
        groups = "; ".join(", ".join(runs) for runs in runs_of_kind.values())
        message = f"{out}/runs/{name}/ holds runs of {len(runs_of_kind)} different encoders of an earlier version"
        raise UserError(message, key="out", got=groups, hint=f"Delete those of all but one. {ELSEWHERE}")
    return next(iter(runs_of_kind), "")


def _with_batch(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with the samples of a step, which its two free factors must leave as they are."""
    training = recipe["training"]
    return {**recipe, "training": {**training, "samples of a step": training["batch_size"] * training["accumulate"]}}
