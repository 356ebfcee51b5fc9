"""Every command of the README and the guides: read by the real parser, and run in order in one folder."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from medssl import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/guides").glob("*.md"))]
ON_SLIDES = [ROOT / "docs/guides/slides.md", ROOT / "docs/guides/bags.md"]  # in a folder of their own
RULES = [
    "--files.modality=MR",
    "--subject=(PHANTOM-[0-9]+)",
    "--label.masks=images=labels",
    "--label.class_names=0=background,1=liver,2=spleen,3=kidneys",
    "--label.split=train=0.6,val=0.2,test=0.2",
]
# What stands in a command for something of the reader's, and what the test has in its place.
SUBSTITUTES = {
    "(sub-[0-9]+)": "(PHANTOM-[0-9]+)",
    "0=background,1=tumor": "0=background,1=liver,2=spleen,3=kidneys",
    "size_k > 20": "size_k > 2",
    'spacing_k_mm < 3"': 'spacing_k_mm < 30"',
    "modality = 'CT'": "modality = 'MR'",
}
# Words behind a command that make it small; the words of the page themselves stay as they are.
SMALL_3D = ["--encoder.channels=[4,8,8,8]", "--encoder.blocks=[1,1,1,1]"]
MORE = {
    "pretrain": ["--training.steps=2", "--training.batch_size=2", "--data.workers=0"],
    "finetune": ["--training.steps=2", "--data.workers=0", "--labels=2"],
    "compare": ["--training.steps=2", "--data.workers=0", "--labels=[2]", "--runs=1", "--data.view.size=[16,16,16]"],
    "probe": ["--voxels=200"],
    "predict": ["--allow=spacing", "--files.modality=MR"],
    "cache": ["--workers=0"],
}
MORE_OF_RECIPES = {
    "spark_3d_small": [*SMALL_3D, "--objective.view.size=[16,16,16]"],
    "spark_3d": ["--encoder=resenc_small_3d", *SMALL_3D, "--objective.view.size=[16,16,16]",
                 "--training.accumulate=1",
                 "--training.precision=fp32"],
    "segment_3d_small": ["--data.view.size=[16,16,16]"],
}  # fmt: skip
# Commands that are read by the parser and not run, by how they begin.
NOT_RUN = {
    "medssl index SCANS --index index.sqlite --label.objects": "tests/data/index/test_object_labels.py",
    "medssl index Dataset001_Brain": "needs a folder of nnU-Net: tests/data/index/test_layouts.py",
    "medssl index Task04_Hippocampus": "needs a folder of the decathlon: tests/data/index/test_layouts.py",
    "medssl index STUDY": "needs a folder of BIDS: tests/data/index/test_layouts.py",
    "medssl index SCANS --layout csv": "needs a table of images: tests/data/index/test_layouts.py",
    "medssl index SCANS --index index.sqlite --label.excluded": "needs masks: tests/data/store/test_excluded.py",
    "medssl finetune --config classify_2d_small": "needs values: tests/commands/test_whole_scans.py",
    "medssl finetune --config segment_3d_vit_small": "needs a transformer: tests/commands/test_transformers.py",
    "medssl finetune --config segment_2d_small": "needs the reader's own objective",
    "PYTHONPATH=.": "needs the reader's own objective: tests/commands/test_objective_guide.py",
    "torchrun": "needs four processes: tests/commands/test_two_processes.py",
    "medssl pretrain --config simclr_2d_small": "needs a file of weights: tests/commands/test_continuing.py",
    "medssl pretrain --config mae_2d": "a large transformer: tests/training/test_optim.py",
    "medssl predict runs/tuned patient.nii.gz": "needs the reader's files: tests/commands/test_predict.py",
    "medssl compare spark=runs/spark --config classify_2d": "needs a file of weights: tests/commands/test_compare.py",
    "medssl compare spark=runs/spark_0": "needs three pretrainings: tests/commands/test_compare.py",
    "medssl predict runs/theirs": "needs the run of another: tests/security/test_handed_over.py",
    "medssl probe runs/first --store store --out probes/first --target": "needs values: tests/commands/test_probe.py",
    "medssl probe runs/first --store store --out probes/scratch --target": "needs values: tests/commands/test_probe.py",
    "medssl evaluate probes/first/network": "needs values of whole scans: tests/commands/test_probe.py",
    "medssl cache index.sqlite store --preprocess ct": "the scans of the test are MR",
    "medssl cache index.sqlite store --preprocess nnunet_like": "the scans of the test are MR",
    "medssl cache tiles.sqlite": "needs tiles of histology: tests/commands/test_tiles.py",
    "medssl pretrain --config simclr_tiles_small --store tiles": "needs tiles: tests/commands/test_tiles.py",
    "medssl pretrain --config rad_dino": "needs a file of weights: tests/commands/test_continuing.py",
    "medssl bags features": "needs files of other programs: tests/data/bags/test_foreign.py",
    "medssl finetune --config bags_small --store bags --run runs/cox": "needs times: tests/heads/test_survival.py",
    "medssl phantoms SCANS": "the test has written smaller ones",
    "medssl --help": "tests/commands/test_command_line.py",
    "medssl pretrain --help": "tests/commands/test_command_line.py",
}
NOT_PARSED = {"PYTHONPATH=.": "its class is the reader's own"}
# Folders that a guide takes as made by its reader, and those of the README that stand for them.
STAND_FOR = {
    "runs/spark": "runs/first", "runs/longer": "runs/first", "runs/tuned": "runs/few",
    "runs/pretraining": "runs/first",
    "scores/a": "scores/few", "scores/b": "scores/few",
}  # fmt: skip


def commands(page: Path) -> list[str]:
    """Commands of the fenced blocks of a page, whole even where a line goes on."""
    found = []
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            words = line.split("#")[0].strip()
            if re.match(r"(PYTHONPATH=\S+ )?medssl |torchrun ", words):
                found.append(line.strip())
    return found


EVERY = [(page.name, command) for page in PAGES for command in commands(page)]


def words_of(command: str) -> list[str]:
    """The words behind ``medssl``, the verb first."""
    words = shlex.split(command, comments=True)
    first = next(place for place, word in enumerate(words) if word in {"medssl"})
    return words[first + 1 :]


def reason(command: str, table: dict[str, str]) -> str:
    """Why a command is left out; "" where it is not."""
    return next((why for beginning, why in table.items() if command.startswith(beginning)), "")


def test_there_are_commands_and_no_rule_is_left_over():
    assert len(EVERY) > 50
    texts = [replaced(command) for _, command in EVERY]
    for beginning in (*NOT_RUN, *NOT_PARSED):
        assert any(text.startswith(beginning) for text in texts), beginning
    whole = "\n".join(command for _, command in EVERY)
    assert not [word for word in (*SUBSTITUTES, *STAND_FOR) if word not in whole]


@pytest.mark.parametrize(("page", "command"), EVERY)
def test_the_parser_takes_every_command(page, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    verb, *words = words_of(command)
    if verb.startswith("--") or reason(command, NOT_PARSED):
        return
    read = cli.check_early(verb, words)
    assert read.help is not None or cli.parse(verb, words) is not None


def replaced(command: str) -> str:
    """The command with what the test has in the place of the reader's things."""
    for word, other in SUBSTITUTES.items():
        command = command.replace(word, other)
    return command


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    mask, threads, here = os.umask(0o077), torch.get_num_threads(), Path.cwd()
    os.chdir(folder)
    small = ["--count=20", "--labeled=20", "--shape=[24,20,20]"]
    assert cli.main(["phantoms", "SCANS", *small]) == 0
    for name in ("NEW_SCANS", "new_scans"):
        assert cli.main(["phantoms", name, "--count=1", "--labeled=0", "--shape=[24,20,20]", "--seed=9"]) == 0
    yield folder
    os.chdir(here)
    os.umask(mask)
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page not in ON_SLIDES], ids=lambda page: page.name)
def test_the_commands_of_a_page_run_in_order_in_one_folder(place, page, capsys):
    if page.name != "README.md" and not Path("runs/first").exists():
        pytest.skip("the runs of README.md are not there: it comes first")
    for command in map(replaced, commands(page)):
        if reason(command, NOT_RUN):
            continue
        verb, *words = words_of(command)
        words = [re.sub(r"(?<![\w/])(" + "|".join(map(re.escape, STAND_FOR)) + r")$", stand, word) for word in words]
        recipe = words[words.index("--config") + 1] if "--config" in words else ""
        words += [*MORE.get(verb, []), *MORE_OF_RECIPES.get(recipe, [])]
        if verb == "index" and "SCANS" in words and page.name != "README.md":
            words += RULES
        if verb == "cache" and "--preprocess" in words:
            words.append("--preprocess.spacing_mm=8,8,8")  # as in the README: pages share one store
        if verb == "index" and "SCAN_ID" in words:
            words[words.index("SCAN_ID")] = "failed"
        code = cli.main([verb, *words])
        said = capsys.readouterr()
        assert code == 0, f"{command}\n{said.out[-2000:]}\n{said.err[-2000:]}"


def stand(found: re.Match[str]) -> str:
    """The folder that a guide's folder stands for, where the test has not made it."""
    return found[1] if Path(found[1]).exists() else STAND_FOR[found[1]]


MORE_ON_SLIDES = {
    "phantoms": ["--labeled=8", "--shape=[768,768]"],
    "index": ["--label.split=train=0.4,val=0.3,test=0.3"],
    "cache": ["--workers=0"],
    "pretrain": [*MORE["pretrain"], "--objective.view.size=[32,32]"],
    "embed": ["--allow=seen"],
    "finetune": ["--training.steps=2", "--allow=seen"],
}


@pytest.mark.slow
def test_the_commands_on_slides_and_bags_run_in_order(tmp_path, tmp_path_factory, monkeypatch, capsys):
    """From slides to answers and heat maps, as the two guides say, on synthetic slides."""
    monkeypatch.chdir(tmp_path)
    key = tmp_path_factory.mktemp("config") / "medssl/key"  # the same splits each time
    key.parent.mkdir()
    key.write_text("0" * 64)
    key.chmod(0o600)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(key.parent.parent))
    assert cli.main(["phantoms", "synthetic", "--kind=slides", "--count=24", "--labeled=24", "--shape=[768,768]"]) == 0
    Path("synthetic/slides").rename("slides")
    Path("synthetic/slides.csv").rename("slides.csv")
    for command in [command for page in ON_SLIDES for command in commands(page)]:
        if reason(command, NOT_RUN):
            continue
        verb, *words = words_of(command)
        words += [] if words[:1] == ["--show"] else MORE_ON_SLIDES.get(verb, [])
        code = cli.main([verb, *words])
        said = capsys.readouterr()
        assert code == 0, f"{command}\n{said.out[-2000:]}\n{said.err[-2000:]}"
    assert list(Path("predictions/heat_maps").glob("*.png"))
