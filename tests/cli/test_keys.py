"""Keys that are read from the source text are those that the parsers take, and mistakes are found without torch."""

from __future__ import annotations

import pydoc
import subprocess
import sys

import pytest
from jsonargparse import ArgumentParser

from medssl import cli
from medssl.cli.keys import keys_of
from medssl.cli.parser import make_parser
from medssl.io import configurations as recipes
from medssl.io.suggestions import nearest

HEAVY = ("torch", "lightning", "monai", "numpy", "jsonargparse")


def leaves(names):
    return {name for name in names if not any(other.startswith(f"{name}.") for other in names)}


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_keys_of_a_verb_are_those_of_its_parser(verb):
    keys = keys_of(cli.VERBS[verb].place, {})
    taken = set(make_parser(cli.find_verb(verb), verb).get_defaults().keys()) - {"config"}
    assert [name for name in taken if not keys.takes(name)] == []
    groups = {name for name in taken if name in keys.groups}  # None by default
    extra = [name for name in leaves(keys.known) - taken if not any(name.startswith(f"{group}.") for group in groups)]
    assert extra == []
    assert keys.open <= {"encoder", "objective", "head", "settings", "optimizer.rates"}


PRESETS = [(kind, name) for kind in ("encoder", "objective", "head") for name in recipes.config_names(f"{kind}s")]


@pytest.mark.parametrize(("kind", "name"), PRESETS)
def test_the_keys_of_a_preset_are_those_of_its_class(kind, name):
    path = recipes.load_config(name, f"{kind}s")["class_path"]
    keys = keys_of(cli.VERBS["finetune" if kind == "head" else "pretrain"].place, {kind: path})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(pydoc.locate(path), kind, skip={"encoder", "schema"}, fail_untyped=False)
    taken = set(parser.get_defaults().keys())
    assert taken
    assert [key for key in taken if not keys.takes(key)] == []
    own = {key for key in keys.known if key.startswith(f"{kind}.")} - {f"{kind}.help", f"{kind}.class_path"}
    extra = leaves(own) - taken
    assert {key for key in extra if not any(key.startswith(f"{group}.") for group in taken)} == set()
    assert kind not in keys.open


@pytest.mark.parametrize("recipe", recipes.config_names("recipes"))
def test_shipped_recipes_pass(recipe):
    verb = recipes.verb_of(recipe)
    where = "--out=r" if verb == "stages" else "--run=r"
    cli.check_early(verb, [f"--config={recipe}", "--store=s", where])


def test_classes_of_others_are_left_to_the_parser():
    assert keys_of("strangers.verbs:stroll", {}) is None
    keys = keys_of(cli.VERBS["pretrain"].place, {"objective": "mine.Objective"})
    assert keys.takes("objective.anything")
    cli.check_early(
        "pretrain", ["--config=spark_3d_small", "--store=s", "--run=r", "--objective=my.One", "--objective.a=1"]
    )


READY = ["--store=s", "--run=r"]
QUICK = [
    (["pretrian"], "unknown verb 'pretrian' (did you mean 'pretrain'?)"),
    (["pretrain", "--config", "spark_3d_smal"], "in recipes (did you mean 'spark_3d_small'?)"),
    (["pretrain", "--config=spark_3d_small", *READY, "--training.stps=3"], "did you mean 'training.steps'"),
    (["finetune", "--config=segment_3d_small", *READY, "--head.norms=3"], "did you mean 'head.norm'"),
    (["pretrain", "--config=segment_3d_small"], "segment_3d_small is a recipe of medssl finetune"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"), QUICK, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_is_found_without_torch(words, message):
    program = (
        "import sys; from medssl.cli import main; code = main(sys.argv[1:]);"
        f"print(code, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n"
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


HINTS = [
    (["--optimizer.lr=1"], "unknown key 'optimizer.lr' (did you mean 'optimizer.learning_rate'?)"),
    (["--lr=1"], "unknown key 'lr' (did you mean 'optimizer.learning_rate'?)"),
    (["--steps=1"], "unknown key 'steps' (did you mean 'training.steps'?)"),
    (["--training.bs=1"], "unknown key 'training.bs' (did you mean 'training.batch_size'?)"),
    (["--preprocess=ct"], "unknown key 'preprocess' (did you mean 'data.preprocess'?)"),
    (["--zzzz=1"], "unknown key 'zzzz': --help all lists the keys"),
]


@pytest.mark.parametrize(("words", "message"), HINTS)
def test_hints_name_the_key_that_was_meant(words, message, capsys):
    assert cli.main(["pretrain", "--config=spark_3d_small", "--store=s", "--run=r", *words]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_names_that_are_equally_near_are_all_named():
    assert nearest("spark", ["spark_2d", "spark_3d", "simmim_2d"]) == " (did you mean 'spark_2d' or 'spark_3d'?)"


def test_a_missing_recipe_names_the_recipes(capsys):
    assert cli.main(["pretrain", "--store=s", "--run=r"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: medssl pretrain needs a recipe: --config NAME, out of ")
    assert ", global_2d, " in said
    assert "spark_3d_small" in said
    assert "segment" not in said
    assert cli.main(["compare", "runs/first", "--store=s", "--index=i", "--out=o", "--labels=[2]"]) == 2
    assert (
        "medssl compare needs a recipe: --config NAME, out of bags_small, classify_2d_small, "
        in capsys.readouterr().err
    )


def test_a_class_without_arguments_in_a_recipe_is_there(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("encoder: {class_path: mine.Encoder}\nobjective: {class_path: mine.Objective}\ntraining: {}\n")
    cli.check_early("pretrain", [f"--config={recipe}", *READY])
    recipe.write_text("objective: {class_path: mine.Objective}\ntraining: {steps: 1}\n")
    assert cli.main(["pretrain", f"--config={recipe}", *READY]) == 2
    assert "medssl pretrain needs --encoder; medssl pretrain --help" in capsys.readouterr().err


def test_missing_options_are_named(capsys):
    assert cli.main(["pretrain", "--config=spark_3d_small"]) == 2
    assert "medssl pretrain needs --store and --run; medssl pretrain --help" in capsys.readouterr().err


def test_a_short_name_lists_the_keys_of_its_class(capsys):
    assert cli.main(["pretrain", "--objective.help", "spark"]) == 0
    assert "--objective.mask_ratio" in capsys.readouterr().out
    assert cli.main(["pretrain", "--objective.help", "mae"]) == 2
    assert (
        "several presets begin with 'mae': give one of mae_2d, mae_3d, mae_cxr, mae_resenc_2d"
        in capsys.readouterr().err
    )


def test_slow_loading_says_so():
    program = (
        "import time; from medssl.cli import patience; patience.PATIENCE_S = 0.1\n"
        "with patience.said_when_slow('pretrain'): time.sleep({})"
    )
    for seconds, said in ((0.6, "medssl pretrain: loading PyTorch, a few seconds ...\n"), (0.0, "")):
        command = [sys.executable, "-c", program.format(seconds)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == said


@pytest.mark.parametrize("heading", ["medssl demo: 4 labeled patients", "{a: 1}", "[1, 2]", "yes", "7"])
def test_a_text_option_takes_any_text_as_it_is(heading, tmp_path, capsys):
    code = cli.main(["report", str(tmp_path / "page.html"), str(tmp_path / "missing"), "--heading", heading])
    printed = capsys.readouterr().err
    assert code == 2
    assert "missing" in printed, printed  # the folder is refused, not the heading


def test_null_reaches_an_argument_of_a_class_as_null():
    """On its own jsonargparse takes null inside a class for a text."""
    from medssl.cli.parser import arguments_for
    from medssl.cli.words import check_keys, read_command

    words = ["--config=spark_2d_small", "--store=s", "--run=r", "--objective.view.area=null"]
    for more in ([], ["--objective.view.scale", "0.7,1.0"]):
        command = read_command(cli.VERBS["pretrain"].place, [*words, *more], "pretrain")
        check_keys(command)
        view = arguments_for(cli.find_verb("pretrain"), "pretrain", command)["objective"].keywords["view"]
        assert (view.area, view.size) == (None, (160, 160))
