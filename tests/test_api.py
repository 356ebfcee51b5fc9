"""What ``import medssl`` gives: lazy names, the road of the command line, typed results, and nothing left behind."""

from __future__ import annotations

import dataclasses
import doctest
import functools
import importlib
import inspect
import logging
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import medssl
from medssl import api, cli
from medssl.types import UserError

FUNCTIONS = [name for name in medssl.__all__ if inspect.isfunction(getattr(medssl, name))]
COMMANDS = [name for name in FUNCTIONS if name in cli.VERBS]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_loads_neither_torch_nor_numpy():
    heavy = "{'torch', 'numpy', 'jsonargparse', 'lightning', 'monai', 'yaml'}"
    assert python(f"import sys, medssl; print({heavy} & set(sys.modules))") == "set()\n"


def test_no_package_of_the_house_has_the_name_of_a_function():
    for module in pkgutil.iter_modules(medssl.__path__):
        if module.name != "__main__":
            importlib.import_module(f"medssl.{module.name}")
    for name in FUNCTIONS:
        assert inspect.isfunction(getattr(medssl, name)), name
    assert {"pretrain", "index", "predict", "probe", "compare"} <= set(COMMANDS)


def test_help_names_everything_public_on_a_line_of_its_own():
    lines = [line.split() for line in medssl.__doc__.splitlines() if line.startswith("    ")]
    assert sorted(words[0] for words in lines) == sorted(medssl.__all__)
    assert set(dir(medssl)) == {*medssl.__all__, "__version__"}
    assert "semantic versioning" in medssl.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'medssl' has no attribute 'pretain'"):
        medssl.pretain  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Spark'"):
        medssl.objectives.Spark  # noqa: B018


def test_objectives_are_classes_of_the_presets():
    from medssl.io.configurations import config_names, load_config

    paths = {load_config(name, "objectives")["class_path"] for name in config_names("objectives")}
    for path in paths:
        module, _, name = path.rpartition(".")
        assert getattr(medssl.objectives, name) is getattr(importlib.import_module(module), name)
        assert name in dir(medssl.objectives)


# --- one road


@pytest.fixture
def arguments(monkeypatch):
    """What a function of the library hands to the function of its command."""
    given = {}

    def find(verb):
        function = cli.find_verb(verb)

        @functools.wraps(function)
        def record(**values):
            given.update(values)

        return record

    monkeypatch.setattr(api, "find_verb", find)
    return given


def same(arguments, verb, words):
    from medssl.training.configuration import as_data

    parsed = cli.parse(verb, words)
    assert arguments.keys() == parsed.keys()
    for key, value in parsed.items():
        assert as_data(arguments[key]) == as_data(value), key
        assert type(arguments[key]) is type(value), key


PRETRAIN = ["--config", "spark_3d_small", "--store", "store", "--run", "run"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, []),
        ({"training": {"steps": 50}}, ["--training.steps=50"]),
        ({"training.steps": 50, "training": {"batch_size": 2}}, ["--training.steps=50", "--training.batch_size=2"]),
        ({"objective": "simclr_3d"}, ["--objective", "simclr_3d"]),
        ({"objective": {"view": {"size": [32, 32, 32]}}}, ["--objective.view.size=32,32,32"]),
        ({"pretrained": Path("other")}, ["--pretrained", "other"]),
        ({"encoder": {"base": "resenc_3d", "init_args": {"in_channels": 2}}},
         ["--encoder", "resenc_3d", "--encoder.in_channels=2"]),
    ],
    ids=str,
)  # fmt: skip
def test_settings_mean_what_options_mean(arguments, settings, words):
    medssl.pretrain("spark_3d_small", store=Path("store"), run="run", **settings)
    same(arguments, "pretrain", [*PRETRAIN, *words])


def test_a_recipe_may_be_a_file_or_a_dictionary(arguments, tmp_path):
    from medssl.io.configurations import config_file, load_recipe

    medssl.pretrain(config_file("spark_3d_small", "recipes"), store="store", run="run")
    same(arguments, "pretrain", PRETRAIN)
    medssl.pretrain(load_recipe("spark_3d_small"), store="store", run="run")
    same(arguments, "pretrain", PRETRAIN)


def test_objects_are_settings_too(arguments):
    from medssl.training.settings import Training

    training = Training(steps=7, batch_size=3)
    medssl.pretrain("spark_3d_small", store="store", run="run", training=training)
    assert arguments["training"] == training
    view = medssl.ViewSpec((16, 16, 16))
    objective = functools.partial(medssl.objectives.SimCLR, view=view)
    medssl.pretrain("spark_3d_small", store="store", run="run", objective=objective)
    assert arguments["objective"].keywords["view"] == view


def test_other_commands(arguments):
    medssl.index("scans", label={"masks": "a=b"}, files={"modality": "CT"})
    same(arguments, "index", ["scans", "--label.masks=a=b", "--files.modality=CT"])
    arguments.clear()
    medssl.cache("index.sqlite", "store", preprocess="mr", workers=0)
    same(arguments, "cache", ["index.sqlite", "store", "--preprocess", "mr", "--workers=0"])
    arguments.clear()
    medssl.compare(["a", "b"], "segment_3d_small", store="s", index="i", out="o", labels=[2, 0.5, None])
    words = ["a", "b", "--config=segment_3d_small", "--store=s", "--index=i", "--out=o", "--labels=2,0.5,null"]
    same(arguments, "compare", words)
    arguments.clear()
    seeds = {"spark": ["a", Path("b")], "mae": "c"}
    more = {
        "oracle": True,
        "tune": {"learning_rates": [1e-3, 3e-3], "runs": 2},
        "against": ["x=w.safetensors@vit_base_2d"],
    }
    medssl.compare(seeds, "segment_3d_small", store="s", index="i", out="o", labels=[2], **more)
    words = ["spark=a,b", "mae=c", *words[2:-1], "--labels=2", "--oracle", "--tune.learning_rates=1e-3,3e-3"]
    same(arguments, "compare", [*words, "--tune.runs=2", "--against=x=w.safetensors@vit_base_2d"])
    arguments.clear()
    medssl.predict("run", ["x", Path("y")], out="o", allow=["spacing"])
    same(arguments, "predict", ["run", "x", "y", "--out=o", "--allow=spacing"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: medssl.pretrain("spark_3d_small", store="s", run="r", training={"stepz": 1}), "training.stepz"),
        (lambda: medssl.pretrain("spark_3d_smal", store="s", run="r"), "spark_3d_smal.*spark_3d_small"),
        (lambda: medssl.pretrain(store="s", run="r"), r"pretrain needs .*objective.*one of .*spark_3d_small"),
        (lambda: medssl.pretrain("spark_3d_small", store="s", run="r", seed=1), "seed"),
        (lambda: medssl.pretrain("spark_3d_small", store="s", run="r", **{"training.steps": "x"}), "steps: .*'x'"),
        (lambda: medssl.pretrain("segment_3d_small", store="s", run="r"), "segment_3d_small is a recipe"),
        (lambda: medssl.load_encoder("nowhere"), "nowhere"),
    ],
)  # fmt: skip
def test_mistakes_are_user_errors_of_one_line(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- results, and what stays of a call


def test_the_umask_is_restored_and_files_are_private(tmp_path):
    before = os.umask(0o022)
    try:
        result = medssl.report(tmp_path / "page.html", [run_folder(tmp_path)], heading="Mine")
        assert os.umask(0o022) == 0o022
        assert result.page.stat().st_mode & 0o077 == 0
        with pytest.raises(UserError, match="nowhere"):
            medssl.report(tmp_path / "page.html", [tmp_path / "nowhere"])
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert result.exit_code == 0
    with pytest.raises(dataclasses.FrozenInstanceError, match="parts"):
        result.parts = 2
    assert len(repr(result)) < 300


def run_folder(place: Path) -> Path:
    from commands import fitted

    folder = fitted.save(place / "run")
    (folder / "config.yaml").write_text("{}\n", encoding="utf-8")
    return folder


def test_loaded_modules_carry_their_card(tmp_path):
    import torch

    from medssl.encoders.weights import load_encoder
    from medssl.heads.weights import load_network

    folder = run_folder(tmp_path)
    network, encoder = medssl.load_network(str(folder)), medssl.load_encoder(folder / "encoder.safetensors")
    assert network.card == encoder.card == load_network(folder)[1]
    assert not network.training
    assert not encoder.training
    image = torch.rand(1, 1, 8, 8, 8)
    assert torch.equal(encoder(image).pooled, load_encoder(folder)[0](image).pooled)
    assert encoder.state_dict().keys() == load_encoder(folder)[0].state_dict().keys()


# --- examples in docstrings


def with_examples() -> list[str]:
    root = Path(medssl.__file__).parent
    files = [path for path in root.rglob("*.py") if ">>>" in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__") for path in files]


def test_some_docstrings_have_examples():
    assert "medssl.api" in with_examples()


@pytest.mark.parametrize("module", with_examples())
def test_examples_in_docstrings_are_true(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("medssl"), "disabled", True)
    monkeypatch.setattr(logging.getLogger("medssl"), "handlers", [])
    done = doctest.testmod(importlib.import_module(module))
    assert done.attempted
    assert not done.failed


def test_the_reference_describes_every_public_name_and_every_result():
    page = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
    for name in medssl.__all__:
        assert f"medssl.{name}" in page, name
    for name in COMMANDS:
        kind = inspect.signature(getattr(medssl, name)).return_annotation
        homes = (f"medssl.commands.{name}", "medssl.training.results")
        assert any(f"autoclass:: {home}.{kind}\n" in page for home in homes), name
