"""Proves that two checkouts of medssl leave the same outputs: weights, tables, predictions, stores, indexes.

    python tests/golden_outputs.py --against OTHER_CHECKOUT

runs the commands of ``golden_commands.py`` in both checkouts, on synthetic scans, on one core in single precision, and
compares what they left, value by value and bit by bit. A table names each artefact, its number of values, and
"equal" or the first difference. The exit code is 0 if all are equal, 1 if any differs, 2 if a command failed.

    python tests/golden_outputs.py --against OTHER_CHECKOUT --out FOLDER      keeps the outputs of both
    python tests/golden_outputs.py --reuse FOLDER                             takes those of the other from there
    python tests/golden_outputs.py --reuse FOLDER --until "pretrain probed"   stops early, for a quick look

Without ``--against`` this checkout runs twice, which proves that its outputs repeat. One checkout takes about three
minutes. Not compared are times, paths, versions, pictures for people, pages, configurations and trainers' states.
"""

from __future__ import annotations

import argparse
import ast
import csv
import importlib
import io
import json
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import golden_commands
import numpy as np

HERE = Path(__file__).parent
TIME = 1_700_000_000  # of every scan: digests hold times of modification
ROWS_BEFORE_KILL = 10
ABOUT = "about.json"  # in a folder of outputs: how its files and fields are called, and what it was made with
SECONDS = 180  # that one command may take
SPELLED = {"RENAMED_WORDS", "RENAMED_COMMANDS", "RENAMED_FILES", "RENAMED_FIELDS", "MEANT"}
Values = list[tuple[str, Any]]  # names within an artefact, with what stands there


# --- running the commands


class Renamed:
    """How a checkout spells what 0.1.0 spells otherwise; nothing where it has no copy of the commands."""

    def __init__(self, checkout: Path) -> None:
        file = checkout / "tests" / "golden_commands.py"
        tree = ast.parse(file.read_text()) if file.exists() else ast.Module([], [])
        found = {
            node.target.id: ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in SPELLED
        }  # fmt: skip
        self.words: dict[str, str] = found.get("RENAMED_WORDS", {})
        self.commands: dict[str, str] = found.get("RENAMED_COMMANDS", {})
        self.files: dict[str, str] = found.get("RENAMED_FILES", {})
        self.fields: dict[str, str] = found.get("RENAMED_FIELDS", {})
        self.meant: dict[str, str] = found.get("MEANT", {})

    def command(self, name: str, text: str) -> list[str]:
        """Words of a command as the checkout spells them."""
        words = []
        for word in shlex.split(self.commands.get(name, text)):
            option, separator, value = word.partition("=")
            if word in self.words:
                words += [self.words[word]] if self.words[word] else []
            elif option in self.words and separator:
                words.append(f"{self.words[option]}={value}")
            elif (group := f"{option.partition('.')[0]}.") in self.words:
                words.append(word.replace(group, self.words[group], 1))
            else:
                words.append(word)
        return words


def run_all(checkout: Path, folder: Path, until: str = "") -> None:
    """Runs the commands with the code of a checkout; what they leave is in ``folder/work``, what they say in logs.

    Args:
        checkout: Folder that holds ``medssl`` and ``configs``.
        folder: Where to write; must not be there.
        until: Name of the command to stop after; all without.

    Raises:
        SystemExit: A command failed; its log's end is printed.
    """
    (folder / "work").mkdir(parents=True)
    (folder / "logs").mkdir()
    (folder / "key").mkdir()
    (folder / "key/key").write_text("0" * 64)
    (folder / "key/key").chmod(0o600)
    for name, text in golden_commands.TABLES.items():
        (folder / "work" / name).write_text(text)
    renamed = Renamed(checkout)
    facts = {"files": renamed.files, "fields": renamed.fields, "meant": renamed.meant, "packages": packages()}
    (folder / ABOUT).write_text(json.dumps(facts, indent=1))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MEDSSL", "PYTHON"))}
    environment |= {
        "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(folder / "state"),
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    words = [sys.executable, str(Path(__file__).resolve()), "--worker", str(checkout), str(folder), until]
    code = subprocess.run(words, env=environment, cwd=folder / "work", check=False).returncode
    if code:
        raise SystemExit(2)


def packages() -> dict[str, str]:
    """Versions of what results depend on."""
    names = ("torch", "numpy", "scipy", "lightning", "monai", "timm", "blosc2", "peft", "dynamic-network-architectures")
    return {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in names}


def work(checkout: Path, folder: Path, until: str) -> int:
    """Runs commands as forks of this process, which imports what takes long once; 0, or 2 if one failed."""
    for name in ("torch", "lightning.pytorch", "monai.transforms", "timm", "jsonargparse", "scipy.stats", "nibabel"):
        importlib.import_module(name)
    cli = importlib.import_module("medssl.cli")
    assert Path(cli.__file__).is_relative_to(checkout), f"{cli.__file__} is not of {checkout}"
    renamed, begun = Renamed(checkout), time.monotonic()
    for number, (name, text) in enumerate(golden_commands.COMMANDS):
        words, since = renamed.command(name, text), time.monotonic()
        log = folder / "logs" / f"{number:02d} {name}.log"
        processes = 2 if name.endswith("(2 processes)") else 1
        port = free_port() if processes > 1 else 0
        children = [start(cli.main, words, log, as_torchrun(rank, processes, port)) for rank in range(processes)]
        if name.endswith("(killed)"):
            kill(
                children[0],
                folder / "work" / named(words, "--run") / renamed.files.get("metrics.jsonl", "metrics.jsonl"),
            )
        codes = [wait(child) for child in children]
        expected = -signal.SIGKILL if name.endswith("(killed)") else 0
        print(f"{time.monotonic() - begun:6.1f} s {time.monotonic() - since:6.1f} s  {name}", flush=True)
        said = log.read_text(errors="replace").splitlines()
        if set(codes) != {expected} or any(line.startswith("failed: ") for line in said):  # of runs of a comparison
            said = "\n".join(said[-30:])
            print(f"{checkout}: {shlex.join(words)}\nended with {codes}, expected {expected}:\n{said}", file=sys.stderr)
            return 2
        if name.startswith("phantoms "):
            for file in Path(words[1]).rglob("*"):
                os.utime(file, (TIME, TIME))
        if name == until:
            break
    return 0


def as_torchrun(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells a process of several through the environment; nothing where it is alone."""
    if processes == 1:
        return {}
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "golden",
    }  # fmt: skip


def start(main: Callable[[list[str]], int], words: list[str], log: Path, environment: dict[str, str]) -> int:
    """Starts a command in a fork that writes into a log; returns the fork's number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.setpgid(0, 0)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.alarm(SECONDS)
        os.environ |= environment
        code = main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001 (the exit code alone would not say why)
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill(child: int, log: Path) -> None:
    """Kills a command as soon as its log of steps has some rows."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b"\n") >= ROWS_BEFORE_KILL:
            break
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)


def wait(child: int) -> int:
    """Exit code of a fork; negative: a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def named(words: list[str], option: str) -> str:
    """Value of an option in a command."""
    return next(word.partition("=")[2] for word in words if word.startswith(f"{option}="))


# --- what they left


# Columns of tables and keys of JSON files that are not compared: times, paths, versions, words for people, options, and
# what comparisons have had since own rates and oracles.
UNEQUAL = {
    "seconds", "waiting", "samples_per_second", "time", "minutes", "modified_ns", "folder", "path", "versions",
    "version", "notes", "leaks", "reason", "options", "setting", "settings", "oracles", "headroom", "pretrainings",
}  # fmt: skip
META = {"root", "ruled", "values", "version", "walk", "notes"}  # rows of an index's table of facts
PREDICTED = "predicted"  # pictures count in this folder only, where they are label maps


def about(folder: Path) -> dict[str, Any]:
    """What a folder of outputs says of itself."""
    facts: dict[str, Any] = json.loads((folder / ABOUT).read_text())
    return facts


def artefacts(folder: Path) -> dict[str, Values]:
    """Everything that is compared, by the name that 0.1.0 gives it."""
    renamed = about(folder)
    back = {new: old for old, new in renamed["files"].items()}
    fields = {new: old for old, new in renamed["fields"].items()}
    found: dict[str, Values] = {}
    for file in sorted(path for path in (folder / "work").rglob("*") if path.is_file()):
        parts = [back.get(part, part) for part in file.relative_to(folder / "work").parts]
        reader = READERS.get(file.suffix)
        if parts[0] in SCANS:  # of phantoms: one artefact for all
            reader = json_file if file.suffix == ".json" else as_bytes
            values = [(f"{'/'.join(parts[1:])} {name}", value) for name, value in reader(file)]
        elif reader is not None and (file.suffix != ".png" or parts[0] == PREDICTED):
            values = reader(file)
        else:
            continue
        name = parts[0] if parts[0] in SCANS else "/".join(parts)
        found.setdefault(name, []).extend((rename(name, fields), value) for name, value in values)
    return found


# Folders of phantoms.
SCANS = {"scans_3d", "scans_2d", "both", "large", "shuffled", "new_3d", "new_2d"}


def rename(name: str, fields: dict[str, str]) -> str:
    """A name within an artefact, its parts as 0.1.0 spells them."""
    return " ".join(fields.get(part, part) for part in name.split(" ")) if fields else name


def as_bytes(file: Path) -> Values:
    """A file that is compared byte by byte."""
    return [("bytes", np.frombuffer(file.read_bytes(), np.uint8))]


def tensors(file: Path) -> Values:
    """Tensors of a file of weights with its notes."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        notes = sorted((opened.metadata() or {}).items())
        held = {name: opened.get_tensor(name).contiguous() for name in sorted(opened.keys())}
    import torch

    raw = {name: (str(value.dtype), value.view(torch.uint8) if value.ndim else value) for name, value in held.items()}
    found: Values = [(f"note {name}", text) for name, text in notes if name not in UNEQUAL]
    for name, (dtype, value) in raw.items():
        found += [(f"{name} dtype", dtype), (f"{name} shape", tuple(held[name].shape)), (name, value.numpy())]
    return found


def flat(name: str, content: Any) -> Iterator[tuple[str, Any]]:
    """Values of nested lists and mappings with their names."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key not in UNEQUAL:
                yield from flat(f"{name} {key}" if name else str(key), value)
    elif isinstance(content, list):
        yield f"{name} length", len(content)
        for number, value in enumerate(content):
            yield from flat(f"{name} {number}", value)
    elif isinstance(content, str) and content.startswith(("{", "[")):  # JSON in a column of a table
        yield from flat(name, json.loads(content))
    else:
        yield name, content


def json_file(file: Path) -> Values:
    """Values of a JSON file."""
    return list(flat("", json.loads(file.read_text())))


def json_lines(file: Path) -> Values:
    """Values of a log with one JSON object in each line."""
    return list(flat("row", [json.loads(line) for line in file.read_text().splitlines()]))


def csv_file(file: Path) -> Values:
    """Cells of a table."""
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    return [("rows", len(rows)), *flat("row", rows)]


def nifti(file: Path) -> Values:
    """Voxels and affine of a scan."""
    import nibabel

    image: Any = nibabel.load(file)
    voxels = np.asanyarray(image.dataobj)
    return [("dtype", str(voxels.dtype)), ("affine", image.affine), ("voxels", voxels)]


def picture(file: Path) -> Values:
    """Pixels of a picture."""
    from PIL import Image

    with Image.open(file) as image:
        return [("mode", image.mode), ("pixels", np.asarray(image))]


def array(file: Path) -> Values:
    """Voxels of a raw store."""
    voxels = np.load(file, allow_pickle=False)
    return [("dtype", str(voxels.dtype)), ("voxels", voxels)]


def chunked(file: Path) -> Values:
    """Voxels of a chunked store."""
    import blosc2

    voxels = blosc2.open(str(file), mode="r")[...]
    return [("dtype", str(voxels.dtype)), ("voxels", voxels)]


def database(file: Path) -> Values:
    """Rows of an index or of a store's table of scans, without paths and times."""
    found: Values = []
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        tables = [str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in sorted(tables):
            cursor = connection.execute(f'SELECT * FROM "{table}"')
            columns = [column[0] for column in cursor.description]
            rows = [dict(zip(columns, row, strict=True)) for row in cursor]
            if table == "meta":
                rows = [row for row in rows if row["name"] not in META]
            if table == "files":  # what is no scan, such as phantoms.json, may be longer or shorter
                rows = [row | ({"size": None} if row["state"] == "ignored" else {}) for row in rows]
            kept = [{name: value for name, value in row.items() if name not in UNEQUAL} for row in rows]
            found += flat(table, sorted(kept, key=repr))
    return found


READERS: dict[str, Callable[[Path], Values]] = {
    ".safetensors": tensors, ".csv": csv_file, ".json": json_file, ".jsonl": json_lines, ".gz": nifti, ".png": picture,
    ".npy": array, ".b2nd": chunked, ".pack": as_bytes, ".sqlite": database,
}  # fmt: skip


# --- comparing


def size(values: Values) -> int:
    """How many numbers and texts there are."""
    return sum(value.size if isinstance(value, np.ndarray) else 1 for _, value in values)


def difference(one: Values, other: Values) -> str:
    """How many values of two artefacts differ, and the first of them; "" where all are equal."""
    first, second = dict(one), dict(other)
    said = [f"{name}: only in the {'new' if name in second else 'other'}" for name in first.keys() ^ second.keys()]
    said += [
        f"{name}: {how}" for name, value in first.items() if name in second and (how := unlike(value, second[name]))
    ]
    if not said:
        return "" if list(first) == list(second) else "the same values in another order"
    return f"{len(said)} of {len(first | second)} differ, such as {min(said)}" if len(said) > 1 else said[0]


def unlike(one: Any, other: Any) -> str:
    """How two values differ, "" where they are equal; numbers that are not defined equal each other."""
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray):
        return "" if repr(one) == repr(other) else f"{short(one)} and {short(other)}"
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{one.dtype} {list(one.shape)} and {other.dtype} {list(other.shape)}"
    if one.tobytes() == other.tobytes():
        return ""
    apart = np.argwhere(np.atleast_1d(one != other))
    place = tuple(apart[0].tolist()) if len(apart) else ()
    return f"{len(apart)} of {one.size} differ, the first at {list(place)}"


def short(value: Any) -> str:
    """A value in a few characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def without_meant(found: dict[str, Values], meant: dict[str, str]) -> dict[str, Values]:
    """Artefacts without the values that differ on purpose."""
    beginnings = tuple(meant)
    return {
        artefact: [(name, value) for name, value in values if not f"{artefact}: {name}".startswith(beginnings)]
        for artefact, values in found.items()
    }


def compare(other: dict[str, Values], new: dict[str, Values], *, differing: bool = False, part: bool = False) -> int:
    """Prints the table.

    Args:
        other: Artefacts of the reference.
        new: Those of the checkout that is checked.
        differing: Leaves out the rows of equal artefacts.
        part: The new checkout did not run all commands: what it lacks is left out.

    Returns:
        How many artefacts differ.
    """
    names, wrong, total = sorted(new.keys() if part else other.keys() | new.keys()), 0, 0
    width = max(map(len, names))
    for name in names:
        if name not in other or name not in new:
            said = f"only in the {'new' if name in new else 'other'}"
        else:
            said = difference(other[name], new[name])
        count = size(other.get(name, new.get(name, [])))
        wrong, total = wrong + (bool(said) and name in other), total + count  # what only the new one makes is listed
        if said or not differing:
            print(f"{name:{width}}  {count:>10,}  {said or 'equal'}")
    print(f"{len(names)} artefacts, {total:,} values: {f'{wrong} differ' if wrong else 'all equal'}")
    return wrong


def refuse_missing_presets(checkout: Path) -> None:
    """Refuses to leave out an objective.

    Raises:
        SystemExit: A preset of the checkout has no command.
    """
    there = {file.stem for file in (checkout / "configs/objectives").glob("*.yaml")}
    if apart := sorted(there ^ golden_commands.OBJECTIVES.keys()):
        print(f"presets without a command, or commands without a preset: {apart}", file=sys.stderr)
        raise SystemExit(2)


def warn_of_packages(other: Path, new: Path) -> None:
    """Says where kept outputs were made with other packages: then differences may not be of medssl."""
    one, two = (about(folder)["packages"] for folder in (other, new))
    if apart := [f"{name} {one.get(name)} and {two.get(name)}" for name in two if one.get(name) != two.get(name)]:
        print(f"warning: made with other packages, so differences may be theirs: {', '.join(apart)}", file=sys.stderr)


def main() -> int:
    """Runs both checkouts and compares them."""
    if sys.argv[1:2] == ["--worker"]:
        return work(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, default=HERE.parent, help="the other checkout; this one by default")
    parser.add_argument(
        "--checkout", type=Path, default=HERE.parent, help="the checkout that is checked; this one by default"
    )
    parser.add_argument("--out", type=Path, help="keep the outputs in FOLDER/other and FOLDER/new", metavar="FOLDER")
    parser.add_argument(
        "--reuse", type=Path, metavar="FOLDER", help="take the other checkout's outputs from FOLDER/other"
    )
    parser.add_argument("--differing", action="store_true", help="print only artefacts that differ")
    names = [name for name, _ in golden_commands.COMMANDS]
    parser.add_argument(
        "--until", choices=names, default="", metavar="COMMAND", help="stop after the command of this name"
    )
    options = parser.parse_args()
    refuse_missing_presets(options.checkout.resolve())
    place = options.out or Path(tempfile.mkdtemp(prefix="golden-"))
    others = (options.reuse or place) / "other"
    for there in [place / "new", *([] if options.reuse else [others])]:
        if there.exists():
            parser.error(f"{there} is there already: delete it or choose another --out")
    if not (others / ABOUT).exists() and options.reuse:
        parser.error(f"{others} holds no kept outputs: make them with --against OTHER_CHECKOUT --out {options.reuse}")
    try:
        if options.reuse is None:
            run_all(options.against.resolve(), others.resolve(), options.until)
        run_all(options.checkout.resolve(), (place / "new").resolve(), options.until)
        warn_of_packages(others, place / "new")
        meant = about(others).get("meant", {}) | about(place / "new")["meant"]
        old, new = (without_meant(artefacts(folder), meant) for folder in (others, place / "new"))
        wrong = compare(old, new, differing=options.differing, part=bool(options.until))
        for name, reason in meant.items():
            print(f"left out, {name}: {reason}")
    finally:
        if options.out is None:
            shutil.rmtree(place, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
