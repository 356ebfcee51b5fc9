"""Short runs of small recipes on phantoms that health finds nothing wrong with; their figures are in the output."""

from __future__ import annotations

import contextlib
import io
import json
import os

import pytest

from medssl import cli

SIZE = "--objective.view.size=[32,32,32]"
PRIMUS = ("primus_tiny", "--encoder.width=96", "--encoder.depth=4", "--encoder.size=[32,32,32]")
VIT = ("vit_small_3d", "--encoder.width=96", "--encoder.depth=4")
DISTILLED = ("--objective.prototypes.count=128", "--objective.prototypes.hidden=128")
RUNS = {
    "mae, ViT": ("mae_3d_small", VIT, ("--objective.decoder_width=64",)),
    "mae, Primus": ("mae_3d_small", PRIMUS, ("--objective.decoder_width=64",)),
    "mae of normalized cells, Primus": (
        "mae_3d_small", PRIMUS, ("--objective.decoder_width=64", "--objective.normalize_target=true")
    ),
    "simmim, Primus": ("simmim_3d_small", PRIMUS, ("--objective.cell=[8,8,8]",)),
    "masked distillation, Primus": ("masked_distillation_3d_small", PRIMUS, DISTILLED),
}  # fmt: skip


def call(*words: str) -> str:
    mask, text = os.umask(0o077), io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            assert cli.main(list(words)) == 0, text.getvalue()
    finally:
        os.umask(mask)
    return text.getvalue()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    place = tmp_path_factory.mktemp("recipes")
    call("phantoms", f"{place}/scans", "--count=12", "--shape=[40,40,40]")
    key = place.parent / "key"
    key.write_text("0" * 64)
    key.chmod(0o600)
    call("index", f"{place}/scans", f"--index={place}/index.sqlite", f"--files.key={key}", "--files.modality=MR",
         r"--subject=(PHANTOM-\d+)")  # fmt: skip
    call("cache", f"{place}/index.sqlite", f"{place}/store", "--preprocess=mr", "--workers=0")
    return place / "store"


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_learns_and_raises_no_alarm(store, tmp_path, name):
    recipe, (encoder, *sizes), words = RUNS[name]
    said = call("pretrain", f"--config={recipe}", f"--encoder={encoder}", *sizes, SIZE, *words, f"--store={store}",
                f"--run={tmp_path / 'run'}", "--training.steps=300", "--training.batch_size=8",
                "--optimizer.warmup=0.05", "--data.workers=0")  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    last = rows[-1]
    shown = {key: last[key] for key in ("correlation", "embedding_variation", "teacher_mean_entropy") if key in last}
    print(f"{name}: {last['loss'] / last['chance']:.2f} of chance, {shown}, {said.splitlines()[-1].split('; ')[-1]}")
    assert said.splitlines()[-1].endswith("health: well")
