"""Makes ``files.tar.gz`` and ``numbers.json``: files as medssl 0.1.0 wrote them, and what it read from them.

``tests/test_older_files.py`` opens them with the present code. They were made once, from commit d1066c0, in a folder
whose name says nothing of a machine, since an index names folders:

    git worktree add --detach CHECKOUT d1066c0
    PYTHONPATH=CHECKOUT OMP_NUM_THREADS=1 python tests/files_of_0_1_0/make.py /data/medssl

The script is kept as the record of how the files were made; later versions of medssl may not take its options. All
scans are synthetic. Networks are as small as they can be, so their scores say nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TIME = 1_700_000_000  # of every file: the index holds times of modification
VALUES = """name,split,kind,nodule,effusion,age
PHANTOM-0000,train,small,1,0,31.5
PHANTOM-0001,train,large,0,1,47
PHANTOM-0002,train,small,1,1,52
PHANTOM-0003,train,large,0,0,60.5
PHANTOM-0004,val,small,1,0,44
PHANTOM-0005,val,large,0,1,39
PHANTOM-0006,test,small,1,0,58
PHANTOM-0007,test,large,0,1,71
PHANTOM-0008,test,small,0,1,63
PHANTOM-0009,test,large,1,0,28
PHANTOM-0100,other,large,0,0,50
"""
INDEX = [
    "--files.modality=MR", "--files.workers=0", "--subject=(PHANTOM-[0-9]+)", "--labels.masks=images=labels",
    "--labels.class_names=0=background,1=liver,2=spleen,3=kidneys", "--labels.values=values.csv", "--labels.key=name",
    "--labels.columns=kind,nodule,effusion,age", "--labels.split=column:split",
]  # fmt: skip
CACHE = ["--preprocess=mr", "--preprocess.spacing_mm=[30,30,30]", "--workers=0"]
OUTPUT = [
    "--training.output.picture_every=100", "--training.output.log_every=1", "--training.output.checkpoint_every=2",
]  # fmt: skip
ENCODER = [
    "--encoder=medssl.encoders.resenc.ResEnc", "--encoder.ndim=3", "--encoder.in_channels=1",
    "--encoder.channels=[2,4]", "--encoder.strides=[[1,1,1],[2,2,2]]", "--encoder.blocks=[1,1]",
]  # fmt: skip
PRETRAIN = [
    "pretrain", "--objective=spark_3d", "--objective.view.size=[8,8,8]", "--objective.decoder_width=4", *ENCODER,
    "--store=store", "--training.steps=6", "--training.batch_size=2", "--training.output.keep_every=4", *OUTPUT,
    "--data.split=train", "--data.workers=0",
]  # fmt: skip
FINETUNE = [
    "--store=store", "--data.view.size=[8,8,8]", "--training.steps=4", "--training.batch_size=2", *OUTPUT,
    "--training.output.validate_every=2", "--data.workers=0", "--optimizer.learning_rate=0.01",
]  # fmt: skip
SEGMENT = ["--config=segment_3d_small", *FINETUNE]
CLASSIFY = ["--head=linear", "--data.target=kind", *FINETUNE]
COMMANDS = [
    ["phantoms", "scans", "--count=10", "--labelled=10", "--shape=[12,12,12]"],
    ["phantoms", "new", "--count=1", "--labelled=0", "--shape=[12,12,12]", "--seed=5"],
    ["index", "scans", "--index=index.sqlite", "--files.key=../key", *INDEX],
    ["cache", "index.sqlite", "store", *CACHE],
    ["cache", "index.sqlite", "raw", *CACHE, "--tier=raw"],
    [*PRETRAIN, "--run=runs/pretrained"],
    ["finetune", *SEGMENT, "--run=runs/segmented", "--pretrained=runs/pretrained", "--labels=3"],
    ["finetune", *CLASSIFY, "--run=runs/classified", "--pretrained=runs/pretrained"],
    ["evaluate", "runs/segmented", "--index=index.sqlite", "--out=scores/segmented"],
    ["evaluate", "runs/classified", "--index=index.sqlite", "--out=scores/classified"],
    ["probe", "runs/pretrained", "--store=store", "--out=probes/voxels", "--voxels=200"],
    ["probe", "runs/pretrained", "--store=store", "--out=probes/scans", "--target=kind", "--shots=[1]", "--draws=2"],
    ["compare", "runs/pretrained", *SEGMENT, "--index=index.sqlite", "--out=study", "--labels=[2]", "--runs=2"],
    ["predict", "runs/segmented", "new", "--out=predicted/segmented", "--files.key=../key", "--files.modality=MR"],
    ["predict", "runs/classified", "new", "--out=predicted/classified", "--files.key=../key", "--files.modality=MR"],
    ["index", "--index=index.sqlite", "--export=listing.csv"],
]  # fmt: skip
PACKED = ("index.sqlite", "store", "raw", "runs", "scores", "probes", "study", "new")
# Nothing needs locks, logs, TensorBoard's events (they may name the machine) and second names of checkpoints; pictures
# of cases are large.
LEFT_OUT = (
    ".lock", ".log", "tensorboard/", "-wal", "-shm", "best.pt", "test/pictures/",
    "segmented/pictures/", "classified/checkpoints/",
)  # fmt: skip


def medssl(words: list[str], folder: Path) -> None:
    """Runs one command in the folder."""
    environment = os.environ | {"XDG_STATE_HOME": str(folder.parent / "state")}
    subprocess.run([sys.executable, "-P", "-m", "medssl.cli", *words], cwd=folder, env=environment, check=True)


def write_large(folder: Path) -> None:
    """A volume that is too large for a pack of small ones; steps and a box, so that it compresses well."""
    import nibabel

    steps = np.add.outer(np.add.outer(np.arange(72) // 12 * 100, np.arange(52) // 13 * 10), np.arange(52) // 13)
    box = np.zeros(steps.shape, np.uint8)
    box[20:30, 20:30, 20:30] = 1
    affine = np.diag([30.0, 30.0, 30.0, 1.0])
    nibabel.save(nibabel.Nifti1Image((steps + 50).astype(np.int16), affine), folder / "images/PHANTOM-0100.nii.gz")
    nibabel.save(nibabel.Nifti1Image(box, affine), folder / "labels/PHANTOM-0100.nii.gz")


def set_times(folder: Path) -> None:
    """Gives every file the same time, so that digests of files are the same on every machine and day."""
    for file in folder.rglob("*"):
        os.utime(file, (TIME, TIME))


def set_back(run: Path) -> None:
    """Leaves of a finished run what a kill after step 4 of 6 leaves; the finished weights go to ``finished/``."""
    finished = run.with_name("finished")
    finished.mkdir()
    for name in ("encoder.safetensors", "card.json"):
        shutil.copy2(run / name, finished / name)
    kept = run / "checkpoints/step_000004.pt"
    for file in (run / "checkpoints").iterdir():
        if file != kept:
            file.unlink()
    kept.rename(run / "checkpoints/last.pt")
    log = run / "metrics.jsonl"
    rows = [row for row in log.read_text().splitlines() if json.loads(row).get("step", 0) <= 4]
    log.write_text("\n".join(rows) + "\n")


def numbers(folder: Path) -> dict[str, object]:
    """What medssl reads from the files: digests of exact things, and numbers that processors round differently."""
    import nibabel
    import torch

    from medssl.data.store import Store
    from medssl.heads.weights import load_network

    held: dict[str, object] = {"listing": (folder / "listing.csv").read_text()}
    for name in ("store", "raw"):
        opened = Store.open(folder / name)
        held[name] = {opened.scan_id(i): voxels(opened, i) for i in range(len(opened))}
    image = torch.linspace(-1, 1, 512).reshape(1, 1, 8, 8, 8)
    for name in ("segmented", "classified"):
        with torch.no_grad():
            outputs = load_network(folder / f"runs/{name}")[0](image).double()
        held[name] = {
            "mean": outputs.mean((0, *range(2, outputs.ndim))).tolist(),
            "square": outputs.square().mean().item(),
        }
    map_file = next((folder / "predicted/segmented").glob("*.nii.gz"))
    labels, counts = np.unique(np.asarray(nibabel.load(map_file).dataobj), return_counts=True)
    held["segmented"] |= {"voxels": dict(zip(map(str, labels.tolist()), counts.tolist(), strict=True))}
    held["classified"] |= {"predictions": (folder / "predicted/classified/predictions.csv").read_text()}
    return held


def voxels(store: object, number: int) -> str:
    """Digest of a stored scan's voxels and label."""
    shape = tuple(store.records.facts["shape"][number][: store.records.facts["ndim"][number]].tolist())
    start = (0,) * len(shape)
    arrays = [store.read(number, start, shape), store.read_label(number, start, shape)]
    state = hashlib.sha256()
    for array in arrays:
        state.update(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return state.hexdigest()[:16]


def pack(folder: Path, target: Path) -> None:
    """Writes the folder's files as one archive without owners and times."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for file in sorted(path for name in PACKED for path in [folder / name, *(folder / name).rglob("*")]):
            if file.is_file() and not any(part in file.as_posix() for part in LEFT_OUT):
                entry = tarfile.TarInfo(file.relative_to(folder).as_posix())
                entry.size, entry.mtime, entry.mode = file.stat().st_size, TIME, 0o600
                archive.addfile(entry, io.BytesIO(file.read_bytes()))
    target.write_bytes(gzip.compress(held.getvalue(), 9, mtime=0))


def main(folder: Path) -> None:
    """Runs all commands in an empty folder, then packs what they left."""
    folder.mkdir(parents=True)
    key = folder.parent / "key"
    key.write_text("0" * 64)
    key.chmod(0o600)
    (folder / "values.csv").write_text(VALUES)
    for words in COMMANDS:
        medssl(words, folder)
        if words[:2] == ["phantoms", "scans"]:
            write_large(folder / "scans")
            set_times(folder)
        if words[-1] == "--run=runs/pretrained":
            finished_run = folder / "runs/pretrained"
    set_back(finished_run)
    text = json.dumps(numbers(folder), indent=1, sort_keys=True)
    (HERE / "numbers.json").write_text(text + "\n")
    pack(folder, HERE / "files.tar.gz")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
