from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
import yaml
from commands import verbs

from medssl import cli
from medssl.cli import entry, source
from medssl.cli.parser import arguments_for
from medssl.cli.verbs import Verb
from medssl.cli.words import read_command
from medssl.commands.stages import refuse
from medssl.io import configurations as recipes
from medssl.types import Imported


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Calls the command line with the verbs of the tests and configurations in tmp_path; gives code, stderr, calls."""
    monkeypatch.setitem(source.ROOTS, "commands", Path(__file__).parent)
    monkeypatch.setitem(cli.VERBS, "trip", Verb("nowhere:trip", "", "Train", "trip"))
    for name in ("stroll", "gather", "store", "fail"):
        monkeypatch.setitem(cli.VERBS, name, Verb(f"commands.verbs:{name}", "", "Train", name))
    monkeypatch.setattr(recipes, "config_folder", lambda: tmp_path)
    for folder in ("recipes", "encoders", "objectives", "data"):
        (tmp_path / folder).mkdir()
    cat = {"class_path": "commands.verbs.Cat", "init_args": {"lives": 7}}
    park = {"class_path": "commands.verbs.Park", "init_args": {"walk": {"minutes": 30}}}
    write(tmp_path / "encoders/cat.yaml", cat)
    write(tmp_path / "encoders/dog.yaml", {"class_path": "commands.verbs.Dog", "init_args": {"tricks": ["sit"]}})
    write(tmp_path / "encoders/bare_cat.yaml", {"class_path": "commands.verbs.Cat"})
    write(tmp_path / "objectives/park.yaml", park)
    write(tmp_path / "recipes/tour.yaml", {"encoder": "cat", "objective": "park", "training": {"minutes": 5}})
    changed = {"base": "park", "init_args": {"walk": {"legs": 3}}}
    write(tmp_path / "recipes/limp.yaml", {"encoder": {"base": "cat"}, "objective": changed, "training": {}})
    monkeypatch.setattr(verbs, "calls", [])

    def run(*words: str):
        code = cli.main([str(word) for word in words])
        return code, capsys.readouterr().err, verbs.calls[-1] if verbs.calls else None

    return run


def write(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_help_imports_nothing_heavy():
    probe = (
        "import sys; from medssl.cli import main; code = main(['--help']);"
        "print(code, sorted({'torch', 'numpy', 'yaml', 'jsonargparse', 'lightning'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "0 []"
    assert all(f"  {verb} " in shown for verb in cli.VERBS)


def test_a_recipe_by_name_with_fragments(call):
    code, _, got = call("stroll", "--config", "tour", "--store", "there")
    assert code == 0
    assert (got["store"], got["training"], got["seed"]) == (Path("there"), verbs.Walk(minutes=5), 0)
    assert (got["park"].encoder.lives, got["park"].encoder.paws) == (7, (1, 2, 3, 4))
    assert got["park"].walk == verbs.Walk(minutes=30)


def test_a_recipe_changes_parts_of_a_fragment(call):
    _, _, got = call("stroll", "--config", "limp", "--store", "there")
    assert got["park"].walk == verbs.Walk(minutes=30, legs=3)


@pytest.mark.parametrize("first", [True, False])
def test_overrides_win_wherever_they_stand(call, first):
    overrides = ["--objective.share", "0.25", "--objective.walk.minutes=1", "--encoder.paws", "[9]", "--seed", "3"]
    recipe = ["--config", "tour"]
    _, _, got = call("stroll", *(overrides + recipe if first else recipe + overrides), "--store", "there")
    assert (got["park"].share, got["park"].walk.minutes, got["park"].encoder.paws, got["seed"]) == (0.25, 1, (9,), 3)


@pytest.mark.parametrize("first", [True, False])
def test_a_fragment_wins_wherever_it_stands(call, first):
    fragment, recipe = ["--encoder=dog"], ["--config", "tour"]
    _, _, got = call("stroll", *(fragment + recipe if first else recipe + fragment), "--store", "there")
    assert type(got["park"].encoder) is verbs.Dog


def test_an_optimizer_before_the_recipe_wins():
    ways = [
        ["--optimizer=constant", "--config=segment_3d_small"],
        ["--config=segment_3d_small", "--optimizer=constant"],
    ]
    made = [read_command(cli.VERBS["finetune"].place, words).config for words in ways]
    assert made[0] == made[1]
    assert made[0]["optimizer"]["warmup"] == 0.0
    assert made[0]["optimizer"]["clip"] == 12.0  # of the recipe


def test_another_encoder_replaces_the_recipe_s_as_a_whole(call):
    _, _, got = call("stroll", "--config", "tour", "--encoder", "dog", "--store", "there")
    assert (type(got["park"].encoder), got["park"].encoder.lives) == (verbs.Dog, 1)
    _, _, got = call("stroll", "--config", "tour", "--encoder=bare_cat", "--store", "there")
    assert got["park"].encoder.lives == 9  # not the 7 of the recipe's own cat


def test_a_class_with_its_arguments_on_the_command_line(call):
    dog = "{class_path: commands.verbs.Dog, init_args: {tricks: [sit]}}"
    _, _, got = call("stroll", "--config", "tour", "--encoder", dog, "--encoder.lives=4", "--store", "there")
    assert (type(got["park"].encoder), got["park"].encoder.lives, got["park"].encoder.tricks) == (
        verbs.Dog,
        4,
        ("sit",),
    )


def test_no_class_is_no_class():
    read = read_command(cli.VERBS["finetune"].place, ["--encoder=null", "--store=s"])
    assert (read.values["encoder"], read.classes) == ("null", {})


def test_a_later_recipe_changes_an_earlier_one(call, tmp_path):
    late = write(tmp_path / "late.yaml", {"training": {"legs": 2}, "seed": 8})
    _, _, got = call("stroll", "--config", "tour", "--config", late, "--store", "there")
    assert (got["training"], got["seed"]) == (verbs.Walk(minutes=5, legs=2), 8)


def test_standing_arguments_and_exit_code(call):
    code, _, got = call("gather", "a", "b", "--index", "i")
    assert code == 1
    assert got == {"directories": [Path("a"), Path("b")], "index": Path("i")}


def test_a_class_by_path_stands_before_its_keys_wherever_it_stands(call):
    keys = [
        "--objective.share=0.25",
        "--objective",
        "commands.verbs.Park",
        "--encoder.lives=3",
        "--encoder=commands.verbs.Cat",
    ]
    _, _, got = call("stroll", *keys, "--objective.walk.minutes=1", "--store", "there")
    assert (got["park"].share, got["park"].walk.minutes, got["park"].encoder.lives) == (0.25, 1, 3)


@pytest.mark.parametrize(
    "words",
    [
        ["--objective.help", "park"],
        ["--objective.help=park"],
        ["--config", "tour", "--objective.help"],
        ["--objective.help", "--config=tour"],
        ["--objective.help", "commands.verbs.Park"],
    ],
)
def test_the_keys_of_a_fragment_are_listed(call, words, capsys):
    assert cli.main(["stroll", *words]) == 0
    assert "--objective.walk.minutes" in capsys.readouterr().out


OTHERS = [
    ("pretrain", "segment_3d_small", "segment_3d_small is a recipe of medssl finetune, not of medssl pretrain"),
    ("pretrain", "global_local_3d", "global_local_3d is a recipe of medssl stages, not of medssl pretrain"),
    ("stages", "spark_3d_small", "spark_3d_small is a recipe of medssl pretrain, not of medssl stages"),
]


@pytest.mark.parametrize(("verb", "recipe", "message"), OTHERS)
def test_a_recipe_of_another_verb_is_called_so(verb, recipe, message, capsys):
    assert cli.main([verb, f"--config={recipe}", "--store=s"]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_every_recipe_says_which_verb_it_is_for():
    found = {name: recipes.verb_of(name) for name in recipes.config_names("recipes")}
    assert set(found.values()) == {"pretrain", "finetune", "stages"}
    assert (found["segment_2d"], found["global_local_2d_small"]) == ("finetune", "stages")


KEYS = [
    ("--objective.mask_ratoi=0.5", "unknown key 'objective.mask_ratoi' (did you mean 'objective.mask_ratio'?)"),
    ("--objective.view.sizes=[1]", "unknown key 'objective.view.sizes' (did you mean 'objective.view.size'?)"),
    ("--encoder.chanels=[1]", "unknown key 'encoder.chanels' (did you mean 'encoder.channels'?)"),
]


@pytest.mark.parametrize(("word", "message"), KEYS)
def test_the_nearest_key_of_the_recipes_own_class_is_named(word, message, capsys):
    assert cli.main(["pretrain", "--config=spark_3d_small", "--store=s", "--run=r", word]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


BAD = [
    (("strol",), r"unknown verb 'strol' \(did you mean 'stroll'\?\)"),
    (("stroll", "--config", "tuor"), r"no configuration 'tuor' in recipes \(did you mean 'tour'\?\); there are"),
    (("stroll", "--config", "gone/away.yaml"), r"no configuration 'gone/away.yaml'"),
    (("stroll", "--config", "tour", "--encoder", "catt"), r"no configuration 'catt' in encoders \(did you mean 'cat'"),
    (("stroll", "--config", "tour"), "medssl stroll needs --store; medssl stroll --help describes the options"),
    (("stroll", "--store", "s", "--config", "tour", "--sed", "1"), r"unknown key 'sed' \(did you mean 'seed'\?\)"),
    (
        ("stroll", "--store", "s", "--config", "tour", "--training.minute", "1"),
        r"'training.minute' \(did you mean 'training.minutes'",
    ),
    (
        ("stroll", "--store", "s", "--config", "tour", "--objective.shar", "1"),
        r"'objective.shar' \(did you mean 'objective.share'",
    ),
    (
        ("stroll", "--store", "s", "--config", "tour", "--objective.walk.lgs", "1"),
        r"did you mean 'objective.walk.legs'",
    ),
    (
        ("stroll", "--store", "s", "--config", "tour", "--seed", "rain"),
        r"--seed: the value has the wrong type \(got 'rain'; expected a whole number\)",
    ),
    (
        ("stroll", "--store", "s", "--config", "tour", "--objective.walk.legs", "rain"),
        r"^error: --objective\.walk\.legs: the value has the wrong type \(got 'rain'; expected a whole number\)$",
    ),
    (("store", "--preprocess.spacing", "1"), r"'preprocess.spacing' \(did you mean 'preprocess.spacing_mm'"),
    (
        ("store", "--preprocess.spacing_mm", "a"),
        r"^error: --preprocess.spacing_mm: .* \(got \['a'\]; "
        r"expected a list \(each item a number\) or one of median, nnunet or null\)$",
    ),
    (
        ("store", "--preprocess.intensity.mr.clip", "rang"),
        r"^error: --preprocess.intensity.mr.clip: .* \(got 'rang'; "
        r"expected one of none, range, percentile, collection\)$",
    ),
    (
        ("store", "--preprocess.transforms", "[{class: a.B}]"),
        r"^error: --preprocess.transforms: .* expected a list \(each item class_path and init_args\)\)$",
    ),
    (("stroll", "--store", "s", "--config", "tour", "--encoder.class_path", "commands.verbs.Cow"), "Cow"),
    (("gather",), "medssl gather needs DIRECTORIES; "),
    (("gather", "a", "--indx", "i"), r"unknown key 'indx' \(did you mean 'index'\?\)"),
    (("gather", "a", "--directories", "b"), r"unexpected word 'a'"),
    (("fail", "user", "more"), r"unexpected word 'more'. Options begin with --"),
    (("fail", "user"), "two lines"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda x: " ".join(x) if isinstance(x, tuple) else None)
def test_mistakes_are_one_line_and_exit_with_2(call, words, message):
    code, shown, _ = call(*words)
    assert code == 2
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1, "one line, no traceback"
    assert re.search(message, shown), shown


def test_unknown_keys_in_files_are_named(call, tmp_path):
    for content, message in (
        ({"training": {"minuts": 5}}, "unknown key 'training.minuts' (did you mean 'training.minutes'?)"),
        ({"traning": {"minutes": 5}}, "unknown key 'traning' (did you mean 'training'?)"),
        ({"objective": {"base": "park", "init_args": {"shar": 1}}}, "did you mean 'objective.share'?"),
    ):
        code, shown, _ = call(
            "stroll", "--store", "s", "--config", "tour", "--config", write(tmp_path / "x.yaml", content)
        )
        assert code == 2
        assert message in shown


def test_broken_yaml_and_a_list_are_no_recipes(call, tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [1, 2")
    assert "broken.yaml is no valid YAML" in call("stroll", "--config", tmp_path / "broken.yaml")[1]
    assert "holds no keys" in call("stroll", "--config", write(tmp_path / "list.yaml", [1]))[1]


def test_transforms_of_the_user_by_import_path(call):
    words = "[{class_path: commands.verbs.Cat, init_args: {lives: 3}}, commands.verbs.Dog]"
    code, err, got = call("store", "--preprocess.transforms", words)
    assert code == 0, err
    assert got["preprocess"].transforms == (
        Imported("commands.verbs.Cat", {"lives": 3}),
        Imported("commands.verbs.Dog"),
    )


def test_ctrl_c_exits_with_130(call):
    assert call("fail", "interrupt")[0] == 130


@pytest.mark.parametrize("name", recipes.config_names("recipes"))
def test_every_shipped_recipe_fits_its_verb(name):
    verb = recipes.verb_of(name)
    assert f"medssl {verb} --config {name} " in recipe_text(name)
    values = cli.parse(verb, ["--config", name, "--store", "s", "--out" if verb == "stages" else "--run", "r"])
    if verb == "stages":
        refuse(values["stages"], {})
        assert {stage.config for stage in values["stages"]} <= set(recipes.config_names("recipes"))
    if verb == "pretrain":
        with torch.device("meta"):  # without memory for the weights
            objective = values["objective"](values["encoder"]())
        assert values["training"].batch_size % objective.needs.sampling.regions_per_scan == 0


VIT_RECIPES = {"segment_3d_vit_small": 1.0, "classify_2d_vit_small": 5.0}  # with the norm at which they clip


@pytest.mark.parametrize("recipe", VIT_RECIPES)
@pytest.mark.parametrize("optimizer", recipes.config_names("optimizers"))
def test_an_optimizer_says_how_fast_the_layers_of_a_transformer_move(recipe, optimizer):
    words = ["--config", recipe, "--store", "s", "--run", "r", "--optimizer", optimizer]
    made = cli.parse("finetune", words)["optimizer"]
    assert made.layer_decay == (0.65 if optimizer == "layer_decay" else 1.0)
    assert made.clip == (12.0 if optimizer.startswith("nnunet") else VIT_RECIPES[recipe])


def recipe_text(name):
    return (recipes.config_folder() / "recipes" / f"{name}.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--from-scratch", "--labels", "3"], {"from_scratch": "true", "labels": "3"}),
        (["--labels", "3", "--from_scratch"], {"labels": "3", "from_scratch": "true"}),
        (["--from-scratch", "false"], {"from_scratch": "false"}),
        (["--from-scratch=false", "--labels=-3"], {"from_scratch": "false", "labels": "-3"}),
        (["--training.extend", "--data.view.size", "32", "32", "-1"],
         {"training.extend": "true", "data.view.size": "[32,32,-1]"}),
        (["--data.view.size", "32,32"], {"data.view.size": "[32,32]"}),
        (["--data.view.size=[32, 32]"], {"data.view.size": "[32, 32]"}),
        (["--data.view.size", "32"], {"data.view.size": "[32]"}),
        (["--optimizer.betas", "0.9", "0.99"], {"optimizer.betas": "[0.9,0.99]"}),
        (["--allow", "seen,channels"], {"allow": "[seen,channels]"}),
    ],
)  # fmt: skip
def test_switches_stand_alone_and_lists_need_no_brackets(words, expected):
    assert read_command(cli.VERBS["finetune"].place, words).values == expected


POSITIONAL = [
    (["runs/a", "--store", "s", "--out=o"], {"run": "runs/a", "store": "s", "out": "o"}),
    (["--from-scratch", "runs/a", "--shots", "1", "5"], {"run": "runs/a", "from_scratch": "true", "shots": "[1,5]"}),
    (["--run=runs/a", "--store=s"], {"run": "runs/a", "store": "s"}),
]


@pytest.mark.parametrize(("words", "expected"), POSITIONAL)
def test_a_run_is_named_by_its_place_or_by_its_option(words, expected):
    assert read_command(cli.VERBS["probe"].place, words).values == expected


def test_words_without_options_fill_what_options_leave():
    place = cli.VERBS["predict"].place
    assert read_command(place, ["--run", "r", "a", "b"]).values == {"run": "r", "scans": '["a", "b"]'}
    assert read_command(place, ["r", "a b"]).values == {"run": "r", "scans": '["a b"]'}


@pytest.mark.parametrize("name", recipes.config_names("data"))
def test_every_shipped_preprocess_can_be_asked_for(name):
    from medssl.training.settings import Loading
    from medssl.types import Preprocess

    def verb(*, data: Loading) -> None: ...

    verb.__annotations__ = {"data": Loading}
    values = arguments_for(verb, "verb", read_command("tests:verb", ["--data.preprocess", name]))
    assert isinstance(values["data"].preprocess, Preprocess)


def _full() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("PRAGMA max_page_count = 1")
        connection.execute("CREATE TABLE a (b)")


@pytest.mark.parametrize(
    ("fail", "line"),
    [
        (lambda: Path("/proc/nowhere/file").write_text(""), "error: /proc/nowhere/file: No such file or directory\n"),
        (_full, "error: SQLite says: database or disk is full; check the room"),
    ],
)
def test_what_the_system_refuses_is_one_line(call, monkeypatch, fail, line):
    monkeypatch.setattr(entry, "find_verb", lambda verb: lambda: fail() and 0)
    code, err, _ = call("trip")
    assert code == 2
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_mistake_of_the_program_stays_a_traceback(call, monkeypatch):
    def fail() -> None:
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.execute("SELECT mistaken")

    monkeypatch.setattr(entry, "find_verb", lambda verb: fail)
    with pytest.raises(sqlite3.OperationalError, match="no such column"):
        call("trip")


def test_the_log_of_a_batch_job_has_few_lines_of_progress(tmp_path):
    command = [sys.executable, "-m", "medssl", "phantoms", tmp_path / "scans", "--count=12", "--shape=[32,32,32]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = [part for part in re.split(r"[\r\n]", done.stderr) if part.startswith("phantoms:")]
    assert len(shown) <= 2
    assert "12/12" in shown[-1]


def test_help_of_a_verb_imports_nothing_heavy():
    code = (
        "import sys; from medssl import cli; code = cli.main(['pretrain', '--help'])\n"
        "print(code, sorted({'torch', 'numpy', 'yaml', 'jsonargparse'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--training.batch_size" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 []"
