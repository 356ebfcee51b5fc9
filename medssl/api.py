"""The functions of ``import medssl``: the commands, with recipes and arguments as the command line takes them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medssl.cli.entry import find_verb
from medssl.cli.keys import keys_of
from medssl.cli.verbs import VERBS
from medssl.cli.words import CLASSES, Command, check_keys
from medssl.io.configurations import config_names, load_recipe, merged, verb_of, with_fragments
from medssl.io.trust import names
from medssl.types import UserError

if TYPE_CHECKING:
    from torch import nn

    from medssl.commands.cache import CacheResult
    from medssl.commands.compare import CompareResult
    from medssl.commands.embed import EmbedResult
    from medssl.commands.evaluate import EvaluateResult
    from medssl.commands.index import IndexResult
    from medssl.commands.phantoms import PhantomsResult
    from medssl.commands.predict import PredictResult
    from medssl.commands.probe import ProbeResult
    from medssl.commands.pseudolabel import PseudolabelResult
    from medssl.commands.report import ReportResult
    from medssl.training.results import TrainingResult

PathLike = str | Path
Config = str | Path | Mapping[str, Any] | None


def phantoms(out: PathLike, **settings: Any) -> PhantomsResult:
    """Writes synthetic patients with labels of liver, spleen and kidneys.

    Args:
        out: Folder to write into.
        **settings: Options of ``medssl phantoms``: count, labeled, shape, modality, seed.

    Raises:
        UserError: A setting is wrong.

    Example:
        >>> import medssl, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = medssl.phantoms(folder, count=2, labeled=1, shape=(16, 16))
        >>> (result.scans, result.labeled, result.written)
        (2, 1, 2)
    """
    result: PhantomsResult = _call("phantoms", None, settings, out=out)
    return result


def index(
    directories: PathLike | Sequence[PathLike] = (), *, index: PathLike = "index.sqlite", **settings: Any
) -> IndexResult:
    """Finds the scans of folders, or asks an index.

    Args:
        directories: Folders with scans, or single files; none updates what the index knows.
        index: File of the index.
        **settings: Options of ``medssl index``: subject, label (a dictionary: masks, class_names, values, split),
            files (modality, key), layout, where, export, show.

    Returns:
        How many scans the index holds, or how many meet ``where``.

    Raises:
        UserError: A folder, a rule or a condition is wrong.
    """
    result: IndexResult = _call("index", None, settings, directories=_several(directories), index=index)
    return result


def cache(index: PathLike, store: PathLike, **settings: Any) -> CacheResult:
    """Preprocesses the scans of an index once, into a store; only missing scans are done.

    Args:
        index: File of the index.
        store: Folder of the store.
        **settings: Options of ``medssl cache``: preprocess ("ct", "mr", "image" or a dictionary), where, workers.

    Raises:
        UserError: No scan meets the condition, rules that do not fit, or not enough room.
    """
    result: CacheResult = _call("cache", None, settings, index=index, store=store)
    return result


def pretrain(config: Config = None, *, store: PathLike, run: PathLike, **settings: Any) -> TrainingResult:
    """Pretrains an encoder without labels, or continues a run that was stopped.

    Args:
        config: Recipe: its name, a YAML file, or a dictionary.
        store: Folder of the store.
        run: Folder of the run.
        **settings: Options of ``medssl pretrain``; they win over the recipe: ``training={"steps": 50}``,
            ``objective="simclr_3d"``, ``objective={"temperature": 0.1}``.

    Returns:
        Steps and loss. ``exit_code`` is not 0 where the loss was not finite or a signal stopped the run.

    Raises:
        UserError: A setting is wrong, or does not fit the store or the run.
    """
    result: TrainingResult = _call("pretrain", config, settings, store=store, run=run)
    return result


def finetune(config: Config = None, *, store: PathLike, run: PathLike, **settings: Any) -> TrainingResult:
    """Trains an encoder and a head on labeled scans, or continues a run that was stopped.

    Args:
        config: Recipe: its name, a YAML file, or a dictionary.
        store: Folder of the store, with labels.
        run: Folder of the run.
        **settings: Options of ``medssl finetune``: pretrained, from_scratch, labels, head, data, training, ...

    Raises:
        UserError: A setting is wrong, or does not fit the store, the weights or the run.
    """
    result: TrainingResult = _call("finetune", config, settings, store=store, run=run)
    return result


def pseudolabel(run: PathLike, *, store: PathLike, out: PathLike, **settings: Any) -> PseudolabelResult:
    """Labels stored scans with a fine-tuned network, for another one to train on.

    Args:
        run: Folder of a fine-tuned network that segments.
        store: Folder of the store.
        out: Folder of the labels.
        **settings: Options of ``medssl pseudolabel``: split, confidence, allow.

    Raises:
        UserError: The network does not fit the store.
    """
    result: PseudolabelResult = _call("pseudolabel", None, settings, run=run, store=store, out=out)
    return result


def evaluate(run: PathLike, *, index: PathLike, out: PathLike, **settings: Any) -> EvaluateResult:
    """Scores a fine-tuned network on labeled scans, on their own grid.

    Args:
        run: Folder of a fine-tuned network.
        index: File of the index with the labels.
        out: Folder of the scores.
        **settings: Options of ``medssl evaluate``: split, where, by, calibrate, allow.

    Raises:
        UserError: No labeled scan, or subjects that the network was trained on.
    """
    result: EvaluateResult = _call("evaluate", None, settings, run=run, index=index, out=out)
    return result


def probe(run: PathLike, *, store: PathLike, out: PathLike, **settings: Any) -> ProbeResult:
    """Measures how well the features of a frozen encoder predict labels.

    Args:
        run: Run folder, its card, or a file of weights (with ``encoder``).
        store: Folder of the store, with labels.
        out: Folder of the features and measures.
        **settings: Options of ``medssl probe``: target, labels, from_scratch, allow.

    Raises:
        UserError: A split without labels, or weights that do not fit.
    """
    result: ProbeResult = _call("probe", None, settings, run=run, store=store, out=out)
    return result


def embed(run: PathLike, *, store: PathLike, out: PathLike, **settings: Any) -> EmbedResult:
    """Computes the features of a frozen encoder: a bag for each slide, volume or image.

    Args:
        run: Run folder, its card, or a file of weights (with ``encoder``).
        store: Folder of the store.
        out: Folder of the bags, which ``finetune`` trains heads of bags on.
        **settings: Options of ``medssl embed``: split, layout, half, from_scratch, window, allow.

    Raises:
        UserError: Weights that do not fit, or no scan that can be embedded.
    """
    result: EmbedResult = _call("embed", None, settings, run=run, store=store, out=out)
    return result


def compare(
    encoders: PathLike | Sequence[PathLike] | Mapping[str, PathLike | Sequence[PathLike]], config: Config = None, *,
    store: PathLike, index: PathLike, out: PathLike, **settings: Any,
) -> CompareResult:  # fmt: skip
    """Tests whether pretraining helps, and with how many labels, against baselines from scratch.

    Args:
        encoders: Run folders of pretraining; "NAME=FOLDER" gives a name. Or a dictionary: the folder of each name, or
            several folders of pretrainings that differ in the seed.
        config: Recipe of ``finetune``: its name, a YAML file, or a dictionary.
        store: Folder of the store, with labels.
        index: File of the index of the same scans.
        out: Folder of all runs, tables and pictures.
        **settings: Options of ``medssl compare``: labels (numbers of labeled subjects), runs, oracle (True), tune (a
            dictionary: learning_rates, encoder_rates, presets, runs), against (weights of other programs), jobs, ...

    Raises:
        UserError: Nothing can be compared; nothing was trained then.
    """
    if isinstance(encoders, Mapping):
        encoders = [f"{name}={','.join(_several(paths))}" for name, paths in encoders.items()]
    given = {"encoders": _several(encoders), "store": store, "index": index, "out": out}
    result: CompareResult = _call("compare", config, settings, **given)
    return result


def predict(
    run: PathLike, scans: PathLike | Sequence[PathLike] = (), *, out: PathLike, **settings: Any
) -> PredictResult:
    """Segments or classifies scans with a fine-tuned network, and writes the predictions.

    Args:
        run: Folder of a fine-tuned network.
        scans: Folders, files, DICOM series; or give ``index``.
        out: Folder of the predictions.
        **settings: Options of ``medssl predict``: index, where, names, files, allow.

    Raises:
        UserError: No scans are named, or the folder holds predictions of another network.
    """
    result: PredictResult = _call("predict", None, settings, run=run, scans=_several(scans), out=out)
    return result


def report(out: PathLike, parts: PathLike | Sequence[PathLike], **settings: Any) -> ReportResult:
    """Writes runs, scores and comparisons on one HTML page.

    Args:
        out: The page, such as report.html.
        parts: Run folders and folders of results; "NAME=FOLDER" gives a name.
        **settings: Options of ``medssl report``: heading.

    Raises:
        UserError: A folder that is missing or is none of these.
    """
    result: ReportResult = _call("report", None, settings, out=out, parts=_several(parts))
    return result


def load_encoder(run: PathLike, *, trust: str | Sequence[str] = ()) -> nn.Module:
    """Loads the encoder of a run, pretrained or fine-tuned.

    Args:
        run: Run folder, or the ``encoder.safetensors`` or ``card.json`` in it.
        trust: Import paths of classes that may be built although they are not medssl's.

    Returns:
        The encoder in evaluation mode. ``encoder.card`` says how its input is made and where the weights come from.

    Raises:
        UserError: No card, or weights that do not fit it.
    """
    from medssl.encoders.weights import load_encoder

    encoder, card = load_encoder(_run_folder(run), names(_joined(trust)))
    encoder.card = card  # type: ignore[assignment]  # the card is an attribute of this object alone
    return encoder.eval()


def load_network(run: PathLike, *, trust: str | Sequence[str] = ()) -> nn.Module:
    """Loads a fine-tuned network, encoder and head.

    Args:
        run: Run folder, or a file in it.
        trust: Import paths of classes that may be built although they are not medssl's.

    Returns:
        The network in evaluation mode. ``network.card`` says how its input is made and what its outputs are.

    Raises:
        UserError: No card, a run without a head, or weights that do not fit.
    """
    from medssl.heads.weights import load_network

    network, card = load_network(_run_folder(run), names(_joined(trust)))
    network.card = card  # type: ignore[assignment]  # the card is an attribute of this object alone
    return network


# --- from arguments to the function of a command


def _call(verb: str, config: Config, settings: dict[str, Any], **given: Any) -> Any:
    """Resolves recipe and settings as the command line does, and calls the command.

    Raises:
        UserError: A key is unknown, missing or of another type.
    """
    from medssl.cli.parser import arguments_for

    command = _command(verb, config, settings | given)
    function = find_verb(verb)
    return function(**arguments_for(function, verb, command))


def _command(verb: str, config: Config, settings: Mapping[str, Any]) -> Command:
    """A command out of a recipe and settings.

    Raises:
        UserError: A key is unknown, missing or of another type.
    """
    trust = names(_joined(settings.get("trust", ())))
    if isinstance(config, Mapping):
        recipe = with_fragments({key: value for key, value in _plain(config).items() if key != "verb"}, trust)
    else:
        recipe = {} if config is None else load_recipe(str(config), trust, verb)
    changes: dict[str, Any] = {}
    for key, value in settings.items():
        changes = merged(changes, _nested(key, _joined(value) if key == "trust" else _plain(value)))
    for key in set(CLASSES) & {key for key, value in changes.items() if isinstance(value, dict)}:
        if not {"class_path", "init_args", "base"} & set(changes[key]):  # arguments of the class of the recipe
            changes[key] = {"init_args": changes[key]}
    content = merged(recipe, with_fragments(changes, trust))
    classes = {key: value["class_path"] for key, value in content.items() if _is_class(value)}
    classes |= {key: content[key] for key in CLASSES if isinstance(content.get(key), str)}
    keys = keys_of(VERBS[verb].place, classes)
    command = Command(content, {}, keys, trust=trust, classes=classes)
    check_keys(command)
    missing = [key for key in keys.required if key not in content] if keys else []
    if missing:
        of = "finetune" if verb == "compare" else verb
        recipes = [name for name in config_names("recipes") if verb_of(name) == of]
        hint = f"Give them, or a recipe as config: one of {', '.join(recipes)}." if recipes else "Give them."
        message = f"{verb} needs {', '.join(missing)}"
        raise UserError(message, hint=hint)
    return command


def _is_class(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("class_path"), str)


def _nested(key: str, value: Any) -> dict[str, Any]:
    """A setting with a dotted key as nested dictionaries."""
    for part in reversed(key.split(".")):
        value = {part: value}
    result: dict[str, Any] = value
    return result


def _plain(value: Any) -> Any:
    """A setting as a recipe holds it: paths as text, classes by import path, dataclasses as dictionaries."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) or isinstance(value, type | functools.partial):
        from medssl.training.configuration import as_data

        return as_data(value)
    return value.item() if hasattr(value, "item") else value  # a number of NumPy


def _several(paths: PathLike | Sequence[PathLike]) -> list[str]:
    """Paths as a list of text, also where one is given alone."""
    return [str(paths)] if isinstance(paths, str | Path) else [str(path) for path in paths]


def _joined(trust: str | Sequence[str]) -> str:
    return trust if isinstance(trust, str) else ",".join(trust)


def _run_folder(path: PathLike) -> Path:
    """The run folder of a path to it, or to a file in it."""
    path = Path(path).expanduser()
    return path.parent if path.is_file() else path
