"""The verbs of the command line: the function behind each, its place in the overview, and what its help shows first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        place: Module and name of its function.
        summary: What it does, in a few words.
        task: Group in the overview.
        example: A command, without the program's name.
        basic: Keys that the help shows first; a group stands for all keys in it.
    """

    place: str
    summary: str
    task: str
    example: str
    basic: tuple[str, ...] = ()


TASKS = ("Prepare scans", "Train", "Judge", "Use", "Look around")
VERBS = {
    "phantoms": Verb(
        "medssl.commands.phantoms:phantoms",
        "write synthetic scans to try everything on",
        TASKS[0],
        "phantoms scans --count 40 --labeled 20",
        ("out", "count", "labeled", "shape", "modality"),
    ),
    "index": Verb(
        "medssl.commands.index:index",
        "find the scans of folders, or query an index",
        TASKS[0],
        "index scans --index index.sqlite --subject '(PHANTOM-[0-9]+)' --label.masks images=labels "
        "--label.class_names 0=background,1=liver,2=spleen,3=kidneys --label.split train=0.6,val=0.2,test=0.2 "
        "--files.modality MR",
        (
            *("directories", "index", "subject", "label.masks", "label.class_names", "label.values", "label.key"),
            *("label.split", "files.modality", "files.key", "layout", "where", "export", "show"),
        ),
    ),
    "cache": Verb(
        "medssl.commands.cache:cache",
        "preprocess the scans of an index once, into a store",
        TASKS[0],
        "cache index.sqlite store --preprocess mr --preprocess.spacing_mm 2,2,2",
        (
            "index",
            "store",
            "preprocess",
            "preprocess.spacing_mm",
            "preprocess.orientation",
            "where",
            "workers",
            "verify",
        ),
    ),
    "bags": Verb(
        "medssl.commands.bags:bags",
        "make a folder of bags from features of slides",
        TASKS[0],
        "bags features bags --table.file labels.csv --table.values tumor",
        ("folder", "out", "table.file", "table.values", "table.slide", "table.subject", "table.split", "encoder"),
    ),
    "pretrain": Verb(
        "medssl.commands.pretrain:pretrain",
        "pretrain an encoder on the scans of a store, without labels",
        TASKS[1],
        "pretrain --config spark_3d_small --store store --run runs/first --training.steps 500",
        (
            *("store", "run", "encoder", "objective", "pretrained", "training.steps", "training.batch_size"),
            *("training.accumulate", "training.precision", "training.recompute", "training.seed", "training.extend"),
            *("optimizer.learning_rate", "optimizer.learning_rate_per", "optimizer.schedule"),
            *("data.split", "data.workers"),
        ),
    ),
    "finetune": Verb(
        "medssl.commands.finetune:finetune",
        "train an encoder and a head on labeled scans",
        TASKS[1],
        "finetune --config segment_3d_small --store store --run runs/few --pretrained runs/first --labels 4",
        (
            *(
                "store",
                "run",
                "pretrained",
                "from_scratch",
                "encoder",
                "head",
                "labels",
                "data.target",
                "data.view.size",
            ),
            *("data.workers", "training.steps", "training.batch_size", "training.precision", "training.seed"),
            *("training.extend", "optimizer.learning_rate", "allow"),
        ),
    ),
    "stages": Verb(
        "medssl.commands.stages:stages",
        "run several trainings that build on each other",
        TASKS[1],
        "stages --config global_local_3d_small --store store --out runs/staged",
        ("store", "out", "settings"),
    ),
    "pseudolabel": Verb(
        "medssl.commands.pseudolabel:pseudolabel",
        "label stored scans with a fine-tuned network, to train on",
        TASKS[1],
        "pseudolabel runs/few --store store --out labels --confidence 0.9",
        ("run", "store", "out", "split", "confidence", "allow"),
    ),
    "evaluate": Verb(
        "medssl.commands.evaluate:evaluate",
        "score a fine-tuned network on labeled scans, on their own grid",
        TASKS[2],
        "evaluate runs/few --index index.sqlite --out scores/few",
        ("run", "index", "out", "split", "where", "by", "calibrate", "allow"),
    ),
    "probe": Verb(
        "medssl.commands.probe:probe",
        "measure how well the features of a frozen encoder predict labels",
        TASKS[2],
        "probe runs/first --store store --out probes/first",
        ("run", "store", "out", "target", "labels", "from_scratch", "allow"),
    ),
    "compare": Verb(
        "medssl.commands.compare:compare",
        "test whether pretraining helps, and with how many labels",
        TASKS[2],
        "compare runs/first --config segment_3d_small --store store --index index.sqlite --out study "
        "--labels 2,4,8 --runs 5",
        (
            *("encoders", "store", "index", "out", "labels", "runs", "jobs", "split", "head", "data.target"),
            *("data.view.size", "training.steps", "training.precision", "allow"),
            *("tune.learning_rates", "tune.encoder_rates", "tune.presets", "tune.runs"),
            *("oracle", "oracle_steps", "against"),
        ),
    ),
    "predict": Verb(
        "medssl.commands.predict:predict",
        "segment or classify scans with a fine-tuned network",
        TASKS[3],
        "predict runs/few new_scans --out predictions --files.modality MR",
        ("run", "scans", "out", "index", "where", "names", "files.modality", "allow"),
    ),
    "embed": Verb(
        "medssl.commands.embed:embed",
        "compute features of the tiles of slides, or of slices of volumes",
        TASKS[3],
        "embed runs/first --store store --out bags/first",
        ("run", "store", "out", "split", "layout", "from_scratch", "window", "allow"),
    ),
    "report": Verb(
        "medssl.commands.report:report",
        "write runs, scores and comparisons on one HTML page",
        TASKS[3],
        "report report.html runs/first scores/few",
        ("out", "parts", "heading"),
    ),
    "configs": Verb(
        "medssl.commands.configs:configs",
        "list, show, copy or check recipes and presets",
        TASKS[4],
        "configs --show spark_3d_small",
        ("show", "copy", "validate"),
    ),
}
