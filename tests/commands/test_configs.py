"""The verb configs: it lists, shows, copies and checks configurations, the first three without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from medssl import cli
from medssl.commands.configs import KINDS, ConfigsResult, configs, file_of
from medssl.io.configurations import config_names, load_recipe, summary_of, verb_of


def test_every_recipe_says_its_verb_and_no_parser_sees_it():
    for name in config_names("recipes"):
        content = yaml.safe_load(file_of("recipes", name).read_text())
        assert content["verb"] == verb_of(name)
        assert content["verb"] in {"pretrain", "finetune", "stages"}
        assert "verb" not in load_recipe(name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_configuration_begins_with_a_sentence_on_what_it_is(kind):
    for name in config_names(kind):
        text = summary_of(file_of(kind, name))
        assert text[0].isupper(), name
        assert text.endswith((".", ":")), name


def test_the_list_names_all_of_them_with_their_options(capsys):
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = {line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "}
    assert {name for kind in KINDS for name in config_names(kind)} <= named
    assert "Recipes for medssl pretrain (--config NAME)" in lines
    assert "Presets: heads (--head NAME)" in lines
    assert max(map(len, lines)) <= 100


def test_listing_showing_and_copying_do_without_torch(tmp_path):
    for words in ([], ["--show", "spark_3d"], ["--copy", "spark_3d", tmp_path / "mine.yaml"]):
        program = (
            "import sys; from medssl.cli import main; code = main(sys.argv[1:])\n"
            "print(code, sorted({'torch', 'numpy', 'lightning'} & set(sys.modules)))"
        )
        command = [sys.executable, "-c", program, "configs", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_a_recipe_comes_before_a_preset_of_its_name(capsys):
    for name, kind in (("spark_3d", "recipes"), ("recipes/spark_3d", "recipes"), ("objectives/spark_3d", "objectives")):
        assert cli.main(["configs", "--show", name]) == 0
        assert capsys.readouterr().out == file_of(kind, "spark_3d").read_text()


def test_a_copy_is_a_recipe_of_ones_own(tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    assert cli.main(["configs", "--copy", "spark_3d_small", str(mine)]) == 0
    assert mine.read_bytes() == file_of("recipes", "spark_3d_small").read_bytes()
    assert cli.main(["configs", "--copy", "spark_2d_small", str(mine)]) == 2
    assert "mine.yaml exists already. Choose another file." in capsys.readouterr().err
    assert cli.check_early("pretrain", [f"--config={mine}", "--store=s", "--run=r"]).config == load_recipe(str(mine))


def test_an_unknown_name_gets_the_nearest(capsys):
    assert cli.main(["configs", "--show", "spark_3d_smal"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --show: no recipe and no preset has this name (did you mean 'spark"
    )


BAD = [
    ("training: {steps: 1}\n", "has no verb. Add the key `verb` with one of pretrain, finetune"),
    ("verb: pretrain\ntraining: {stps: 1}\n", "unknown key 'training.stps' (did you mean 'training.steps'?)"),
    ("verb: pretrain\ntraining: {steps: few}\n", "--training.steps: the value has the wrong type (got 'few'; expected"),
    ("verb: pretrain\nencoder: resenc_small_3d\n", "lacks objective, which pretrain needs"),
    ("verb: pretrain\nencoder: {class_path: medssl.encoders.vit.Vit}\n", "has no class Vit (did you mean 'ViT'?)"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_a_wrong_recipe_is_told(tmp_path, capfd, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    assert cli.main(["configs", "--validate", str(tmp_path / "mine.yaml")]) == 2
    assert message in capfd.readouterr().err


def test_a_good_recipe_is_valid(tmp_path, capfd):
    (tmp_path / "mine.yaml").write_bytes(file_of("recipes", "segment_2d_small").read_bytes())
    assert cli.main(["configs", "--validate", str(tmp_path / "mine.yaml")]) == 0
    assert "mine.yaml: a valid recipe for finetune" in capfd.readouterr().out


def test_results_hold_the_names_or_the_file(tmp_path):
    names = configs().names
    assert {"recipes/spark_3d", "objectives/spark_3d", "heads/unet"} <= {*names}
    assert len(names) == sum(len(config_names(kind)) for kind in KINDS)
    assert configs(show="objectives/spark_3d").file == file_of("objectives", "spark_3d")
    assert configs(copy=("spark_3d", tmp_path / "mine.yaml")) == ConfigsResult(tmp_path / "mine.yaml")
