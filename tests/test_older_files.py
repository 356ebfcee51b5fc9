"""Files that medssl 0.1.0 wrote are opened by the present code.

``files_of_0_1_0/make.py`` says how they were made, ``numbers.json`` what 0.1.0 read from them. Where a later version
opens such a file no longer, it must refuse it with one line that says how to convert it, and that line is tested here.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from medssl import cli
from medssl.data.store.store import Store
from medssl.encoders.timm2d import Timm2d
from medssl.heads.weights import load_network
from medssl.io.older_keys import with_present_keys, with_present_options
from medssl.objectives.spark import SparK
from medssl.training.checkpoint import FREE_KEYS, LATER, flat
from medssl.training.continuing import fill_rest
from medssl.training.optim import FineTuning, Optimization
from medssl.training.resume import take_over
from medssl.training.settings import Examples, Training
from medssl.types import Card, Imported, Preprocess, UserError, ViewSpec
from medssl.types.provenance import Provenance

HERE = Path(__file__).parent / "files_of_0_1_0"
NUMBERS = json.loads((HERE / "numbers.json").read_text())
CLOSE = {"rel": 1e-4, "abs": 1e-4}  # processors round differently
PRETRAIN = [
    "--objective=spark_3d", "--objective.view.size=[8,8,8]", "--objective.decoder_width=4",
    "--objective.view.geometry.probability=1", "--objective.view.geometry.flip=safe",  # the preset has others now
    "--encoder=medssl.encoders.resenc.ResEnc", "--encoder.ndim=3", "--encoder.in_channels=1",
    "--encoder.channels=[2,4]", "--encoder.strides=[[1,1,1],[2,2,2]]", "--encoder.blocks=[1,1]", "--training.steps=6",
    "--training.batch_size=2", "--training.output.log_every=1", "--data.split=train", "--data.workers=0",
]  # fmt: skip
PREDICT = ["--files.modality=MR", "--files.workers=0"]


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """Extracts the files into a folder of their own and makes it the working folder."""
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(HERE / "files.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    key = folder.parent / "key-of-older"
    key.write_text("0" * 64)
    key.chmod(0o600)
    mask, threads, here = os.umask(0o077), torch.get_num_threads(), Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(here)
    os.umask(mask)
    torch.set_num_threads(threads)


def table_of(text: str) -> list[list[str]]:
    """Rows of a CSV text."""
    return list(csv.reader(text.splitlines()))


def test_the_index_lists_the_same_scans(older):
    assert cli.main(["index", "--index=index.sqlite", "--export=listing.csv"]) == 0
    assert table_of(Path("listing.csv").read_text()) == table_of(NUMBERS["listing"])


@pytest.mark.parametrize("tier", ["store", "raw"])
def test_a_store_holds_the_same_voxels(older, tier):
    store = Store.open(older / tier)
    assert {store.scan_id(number): digest(store, number) for number in range(len(store))} == NUMBERS[tier]


def digest(store: Store, number: int) -> str:
    """Digest of a stored scan's voxels and label, as ``make.py`` made it."""
    facts = store.records.facts[number]
    shape = tuple(facts["shape"][: facts["ndim"]].tolist())
    state = hashlib.sha256()
    for array in (store.read(number, (0, 0, 0), shape), store.read_label(number, (0, 0, 0), shape)):
        state.update(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return state.hexdigest()[:16]


def test_a_run_goes_on_from_its_checkpoint_to_the_same_weights(older):
    log = Path("runs/pretrained/metrics.jsonl")
    before = rows_of(log)
    assert cli.main(["pretrain", *PRETRAIN, "--store=store", "--run=runs/pretrained"]) == 0
    after = rows_of(log)
    assert [row["step"] for row in after] == [1, 2, 3, 4, 5, 6]
    assert after[:4] == before  # with the times of then: these steps were not repeated
    weights, expected = (load_file(f"runs/{name}/encoder.safetensors") for name in ("pretrained", "finished"))
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-4)


def rows_of(log: Path) -> list[dict[str, object]]:
    """Rows of a run's log."""
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("run", ["segmented", "classified"])
def test_a_fine_tuned_network_gives_the_same_numbers(older, run):
    network, card = load_network(older / f"runs/{run}")
    image = torch.linspace(-1, 1, 512).reshape(1, 1, 8, 8, 8)
    with torch.no_grad():
        outputs = network(image).double()
    assert outputs.mean((0, *range(2, outputs.ndim))).tolist() == pytest.approx(NUMBERS[run]["mean"], **CLOSE)
    assert outputs.square().mean().item() == pytest.approx(NUMBERS[run]["square"], **CLOSE)
    assert card.versions["medssl"] == "0.1.0"


def test_a_segmentation_of_a_new_scan_is_the_same(older):
    import nibabel

    command = ["predict", "runs/segmented", "new", "--out=predicted/segmented", *PREDICT]
    assert cli.main([*command, f"--files.key={older.parent / 'key-of-older'}"]) == 0
    (file,) = Path("predicted/segmented").glob("*.nii.gz")
    counts = np.bincount(np.asarray(nibabel.load(file).dataobj).ravel().astype(int), minlength=4)
    expected = [NUMBERS["segmented"]["voxels"].get(str(value), 0) for value in range(4)]
    assert counts.sum() == sum(expected)
    assert np.abs(counts - expected).sum() <= 4  # of 1728 voxels: ties


def test_a_classification_of_a_new_scan_is_the_same(older):
    command = ["predict", "runs/classified", "new", "--out=predicted/classified", *PREDICT]
    assert cli.main([*command, f"--files.key={older.parent / 'key-of-older'}"]) == 0
    head, row = table_of(Path("predicted/classified/predictions.csv").read_text())
    expected_head, expected = table_of(NUMBERS["classified"]["predictions"])
    assert (head, row[:2]) == (expected_head, expected[:2])
    assert list(map(float, row[2:])) == pytest.approx(list(map(float, expected[2:])), **CLOSE)


@pytest.mark.parametrize(
    ("run", "part", "settings"),
    [
        ("segmented", "optimizer", FineTuning()),
        ("segmented", "training", Training()),
        ("segmented", "data", Examples(ViewSpec((8, 8, 8)))),
        ("pretrained", "optimizer", Optimization()),
        ("pretrained", "training", Training()),
        ("pretrained", "objective.init_args.view", ViewSpec((8, 8, 8))),
    ],
)
def test_every_key_that_a_run_of_0_1_0_lacks_is_listed_with_what_it_did(run, part, settings):
    with tarfile.open(HERE / "files.tar.gz") as archive:
        file = archive.extractfile(f"runs/{run}/config.yaml")
        assert file is not None
        stored = dict(flat(with_present_options(with_present_keys(yaml.safe_load(file)))))
    now = {f"{part}.{key}": value for key, value in flat(dataclasses.asdict(settings)) if value is not None}
    lacking = [key for key in now if key not in stored and not key.startswith(FREE_KEYS)]
    assert [key for key in lacking if not key.endswith(tuple(LATER))] == []


def test_a_report_takes_every_kind_of_folder(older, capsys):
    parts = [
        "runs/pretrained", "tuned=runs/segmented", "runs/classified", "scores/segmented", "classes=scores/classified",
        "probes/voxels", "probes/scans", "study",
    ]  # fmt: skip
    assert cli.main(["report", "report.html", *parts]) == 0
    told = capsys.readouterr().out
    assert "pretrained: too few runs for a verdict: 2 of each arm, it takes 5." in told
    assert "8 parts" in told
    page = Path("report.html").read_text()
    dice = json.loads(Path("scores/segmented/summary.json").read_text())["metrics"]["dice"]["value"]
    assert f"{dice:.3f}" in page


def test_a_configuration_of_a_run_needs_the_weights_that_its_digest_names(older, capsys):
    """``config.yaml`` holds the digest of weights; with the folder of these weights the run is the same."""
    command = ["finetune", "--config=runs/segmented/config.yaml", "--store=store", "--run=again/segmented"]
    assert cli.main(command) == 2
    assert "--pretrained: this is a digest of weights, which names no folder" in (said := capsys.readouterr().err)
    assert "got '72b1b442f07cf38f'" in said
    assert "Give the run folder or the file of these weights." in said
    assert cli.main([*command, "--pretrained=runs/pretrained"]) == 0
    before, after = (rows_of(Path(f"{name}/segmented/metrics.jsonl")) for name in ("runs", "again"))
    assert [row["loss"] for row in after] == pytest.approx([row["loss"] for row in before], **CLOSE)


@pytest.mark.parametrize("key", ["init", "pretrained"])
def test_a_configuration_of_pretraining_says_which_key_holds_a_digest(older, tmp_path, capsys, key):
    text = (older / "runs/pretrained/config.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(
        re.sub("^(init|pretrained): null", f"{key}: 0123456789abcdef", text, flags=re.M)
    )
    assert cli.main(["pretrain", f"--config={tmp_path / 'mine.yaml'}", "--store=store", f"--run={tmp_path}/run"]) == 2
    said = capsys.readouterr().err
    assert "got '0123456789abcdef'" in said
    assert "in the key pretrained or start, of version 0.1.0 in init or start" in said


def test_a_configuration_with_pseudo_labels_asks_for_their_folder(older, tmp_path, capsys):
    text = (older / "runs/segmented/config.yaml").read_text()
    text = text.replace("pseudo: null", "pseudo: {teacher: 12ab, confidence: 0.9, share: 0.5}")
    (tmp_path / "mine.yaml").write_text(text)
    assert cli.main(["finetune", f"--config={tmp_path / 'mine.yaml'}", "--store=store", f"--run={tmp_path}/run"]) == 2
    said = capsys.readouterr().err
    assert "pseudo holds the digest 12ab of the network that made the labels, and no folder" in said
    assert "give pseudo.labels" in said


def spark_on_resnet(*, stem: bool) -> SparK:
    """SparK on a ResNet; with ``stem`` as 0.1.0 built it, with the map of the stem in the decoder."""
    torch.manual_seed(int(stem))
    network = Timm2d("resnet18", in_channels=1)
    network.stem_maps = 0 if stem else network.stem_maps
    return SparK(network, view=ViewSpec(size=(64, 64)), decoder_width=32)


def test_a_checkpoint_of_spark_with_the_map_of_a_stem_is_refused_in_one_line():
    former = spark_on_resnet(stem=True).state_dict()
    message = (
        "the checkpoint of run/ is of another form of SparK: 0 keys missing, 8 unexpected, 0 of another shape (first: "
        "densify.norms.4.weight). Start another run folder with the encoder of this one: pretrained run, or use the "
        "former version."
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        take_over(spark_on_resnet(stem=False), former, "run")
    take_over(spark_on_resnet(stem=True), former, "run")


def test_a_run_starts_from_weights_of_spark_with_the_map_of_a_stem(tmp_path):
    from safetensors.torch import save_file

    former, present = spark_on_resnet(stem=True), spark_on_resnet(stem=False)
    rest = {key: value.clone() for key, value in former.state_dict().items() if not key.startswith("encoder.")}
    save_file(rest, tmp_path / "objective.safetensors")
    objective = Imported("medssl.objectives.spark.SparK", {})
    card = Card(Imported("", {}), Preprocess(), objective, "", Provenance(), 1, {})
    note = fill_rest(present, tmp_path / "objective.safetensors", card)
    assert note.startswith("104 of 104 keys of the rest of the objective: 0 missing")
    for key, value in present.state_dict().items():
        assert key.startswith("encoder.") or torch.equal(value, rest[key]), key
