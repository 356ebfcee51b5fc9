"""Help texts: every option has one, basic options come first, and the examples are real commands."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex

import pytest
from data.bags.made import bag, write_h5, write_table

from medssl import cli
from medssl.cli.help import WIDTH
from medssl.cli.keys import keys_of, keys_of_class
from medssl.io import configurations


def helps_of(verb):
    return {key: item.help for key, item in keys_of(cli.VERBS[verb].place, {}).parameters.items()}


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_option_of_a_verb_has_a_help_text(verb):
    helps = helps_of(verb)
    assert [key for key, text in helps.items() if not text] == []
    assert [key for key, text in helps.items() if not re.match(r'[A-Z"].*\.$', text)] == []


CLASSES = sorted({
    (kind, configurations.load_config(name, f"{kind}s")["class_path"])
    for kind in ("encoder", "objective", "head")
    for name in configurations.config_names(f"{kind}s")
})  # fmt: skip


@pytest.mark.parametrize(("kind", "path"), CLASSES)
def test_every_option_of_a_preset_has_a_help_text(kind, path):
    helps = {key: item.help for key, item in keys_of_class(kind, path).parameters.items()}
    assert [key for key, text in helps.items() if not text] == []


def test_an_option_of_one_name_is_described_alike():
    """Folders, splits and permissions mean the same in every verb."""
    for key in ("trust", "windows"):
        assert len({helps_of(verb)[key] for verb in cli.VERBS if key in helps_of(verb)}) == 1
    assert {helps_of(verb)["where"] for verb in ("cache", "evaluate", "predict")} == {helps_of("cache")["where"]}


@pytest.mark.parametrize("verb", cli.VERBS)
def test_basic_options_come_first_and_all_is_all(verb, capsys):
    known = cli.VERBS[verb]
    keys = keys_of(known.place, {})
    assert set(known.basic) <= keys.known
    for key in known.basic:
        assert "." not in key or keys.parameters[key.rpartition(".")[0]], key
    assert cli.main([verb, "--help"]) == 0
    short = capsys.readouterr().out
    assert cli.main([verb, "--help", "all"]) == 0
    whole = capsys.readouterr().out
    shown = {line.split()[0] for line in whole.replace(", --", "\n  --").splitlines() if line.startswith("  --")}
    leaves = {key for key in keys.parameters if key not in keys.groups or key in configurations.FRAGMENTS}
    assert {f"--{key}" for key in leaves if key not in {"stages"}} <= shown | {f"--{key}" for key in keys.open}
    assert all(f"--{key}" in short for key in known.basic)
    assert all(len(line) <= WIDTH for line in whole.splitlines())
    assert "medssl.encoders.base.Encoder" not in whole


def example_of(verb, capsys):
    """The words behind ``medssl`` in the last line of a verb's help."""
    capsys.readouterr()
    cli.main([verb, "--help"])
    shown = re.sub(r" \\\n\s+", " ", capsys.readouterr().out).splitlines()[-1].strip()
    name, *words = shlex.split(shown)
    assert name == "medssl"
    return words


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_example_of_a_verb_is_a_command_that_is_read(verb, capsys):
    first, *words = example_of(verb, capsys)
    assert first == verb
    command = cli.check_early(verb, words)
    assert command.keys is not None
    assert [key for key in command.keys.required if key not in {part.split(".")[0] for part in command.given()}] == []


def test_help_of_a_group(capsys):
    assert cli.main(["finetune", "--optimizer.help", "lora"]) == 0
    shown = capsys.readouterr().out
    assert "--optimizer.lora.rank INT" in shown
    assert "--training" not in shown
    assert cli.main(["finetune", "--optimiser.help"]) == 2
    assert "there is no group of options --optimiser. --help all lists the options." in capsys.readouterr().err


def test_help_of_pretrain_names_objectives_and_encoders(capsys):
    cli.main(["pretrain", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for kind in ("encoders", "objectives"):
        assert ", ".join(configurations.config_names(kind)) in said


def test_the_overview_groups_the_verbs_by_task(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(f"\n  {verb} ") for verb in cli.VERBS]
    assert places == sorted(places)
    assert [line for line in shown.splitlines() if line.endswith(":")][:5] == [
        "Prepare scans:", "Train:", "Judge:", "Use:", "Look around:",
    ]  # fmt: skip
    assert all(len(line) <= WIDTH for line in shown.splitlines())


# Words behind an example that make it small; the words of the example stay as they are.
TRAINED = ["--training.steps=2", "--training.batch_size=2", "--data.workers=0"]
SMALL_STAGES = {
    **{"*.training.steps": 2, "*.training.batch_size": 4, "*.data.workers": 0, "tuned.labels": 2},
    **{f"{stage}.encoder.channels": [4, 8, 8, 8] for stage in ("global", "local")},
    **{f"{stage}.encoder.blocks": [1, 1, 1, 1] for stage in ("global", "local")},
    "global.objective.view.size": [16, 16, 8],
    **{f"{key}.size": [16, 16, 16] for key in ("local.objective.view", "tuned.data.view")},
}
SMALL = {
    "phantoms": ["--shape=24,20,20"],
    "cache": ["--preprocess.spacing_mm=8,8,8", "--workers=0"],
    "pretrain": [
        *("--encoder.channels=4,8,8,8", "--encoder.blocks=1,1,1,1", "--objective.decoder_width=8"),
        *("--objective.view.size=16,16,16", *TRAINED),
    ],
    "finetune": ["--data.view.size=16,16,16", *TRAINED],
    "probe": ["--voxels=200"],
    "stages": [f"--settings={json.dumps(SMALL_STAGES)}"],
    "compare": ["--labels=8", "--runs=1", "--data.view.size=16,16,16", *TRAINED],
    "predict": ["--files.workers=0"],
    "embed": ["--encoder=resenc_small_2d", "--from_scratch=true", "--window=16,16"],  # the store has volumes
}


@pytest.fixture
def in_this_process(monkeypatch):
    """Stages are read and run without processes, which load PyTorch once more each."""
    from medssl.commands import stages

    def read(words):
        text = io.StringIO()
        with contextlib.redirect_stdout(text), pytest.raises(SystemExit) as end:
            cli.main([*words, "--print_config"])
        return end.value.code, text.getvalue()

    monkeypatch.setattr(stages, "run", cli.main)
    monkeypatch.setattr(stages, "read", read)


def features_for_bags(folder):
    """Features of three slides and a table, for the example of the verb bags."""
    (folder / "features").mkdir()
    for number in range(3):
        made = bag(seed=number)
        write_h5(folder / "features" / f"slide{number}.h5", made.features, made.coords, {"encoder": "toy"})
    rows = [{"slide_id": f"slide{number}", "case_id": str(number), "tumor": "yn"[number % 2]} for number in range(3)]
    write_table(folder / "labels.csv", rows)


@pytest.mark.parametrize("last", ["finetune", pytest.param("configs", marks=pytest.mark.slow)])
def test_the_examples_of_the_verbs_run_in_order_in_one_folder(last, in_this_process, tmp_path, monkeypatch, capsys):
    """In the order of the overview, each from what those before it have written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert cli.main(["phantoms", "new_scans", "--count=1", "--labeled=0", "--shape=24,20,20", "--seed=9"]) == 0
    features_for_bags(tmp_path)
    verbs = list(cli.VERBS)
    assert last in {"finetune", verbs[-1]}
    for verb in verbs[: verbs.index(last) + 1]:
        code = cli.main([*example_of(verb, capsys), *SMALL.get(verb, [])])
        said = capsys.readouterr()
        assert code == 0, f"{verb}: {said.out[-2000:]}{said.err[-2000:]}"
