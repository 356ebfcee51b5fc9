"""What a user can do wrong with ``medssl pretrain``: one line that names it, and the exit code."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import pytest
import torch
from commands import toys
from torch import nn

from medssl import cli
from medssl.encoders.base import Encoder

RECIPE = Path(__file__).with_name("toys.yaml")


class Odd(nn.Linear):
    """A parametric layer that nobody wrote a masked twin of."""


class OddEncoder(Encoder):
    """A user's encoder that says it can be masked sparsely, around a layer that cannot."""

    def __init__(self, in_channels: int = 1):
        super().__init__()
        from medssl.nn.sparse import sparsify

        self.strange = Odd(4, 4)
        sparsify(self)

    def forward(self, image, hidden=None, mode=None):
        raise NotImplementedError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toys.toy_store(tmp_path_factory.mktemp("pretrain") / "store")


@pytest.fixture
def call(store, tmp_path, capsys):
    """Calls the verb on the store of toys with short runs; gives the exit code and everything it said."""

    def run(*words: object, recipe: object = RECIPE):
        mask = os.umask(0o077)
        threads = torch.get_num_threads()
        try:
            with warnings.catch_warnings():
                code = cli.main(
                    [
                        "pretrain",
                        f"--config={recipe}",
                        f"--store={store}",
                        f"--run={tmp_path / 'run'}",
                        "--training.steps=2",
                    ]
                    + [str(word) for word in words]
                )
        finally:
            os.umask(mask)
            torch.set_num_threads(threads)
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


BAD = [
    ("unknown key", ["--training.stps=3"], 2, r"unknown key 'training\.stps' \(did you mean 'training\.steps'\?\)"),
    ("unknown key of the objective", ["--objective.shar=1"], 2, r"'objective\.shar' \(did you mean 'objective\.share'"),
    ("unknown recipe", ["--config=spark_3d_smal"], 2, r"'spark_3d_smal' in recipes \(did you mean 'spark_3d_small'"),
    ("steps below one", ["--training.steps=0"], 2, r"training\.steps: must be at least 1 \(got 0\)"),
    ("workers below zero", ["--data.workers=-1"], 2, r"data\.workers: must be at least 0 \(got -1\)"),
    ("rate below zero", ["--optimizer.learning_rate=-1"], 2, r"\.learning_rate: must be above 0 \(got -1\.0\)"),
    ("warm-up beyond the end", ["--optimizer.warmup=2"], 2, r"optimizer\.warmup: must be from 0 to 1 \(got 2\.0\)"),
    ("negative clip", ["--optimizer.clip=-1"], 2, r"optimizer\.clip: must be above 0, or null \(got -1\.0\)"),
    ("size that strides do not divide", ["--objective.view.size=[7,8,6]"], 2, r"\[7, 8, 6\].*nearest"),
    ("layer without a twin", ["--encoder=commands.test_bad_pretrain.OddEncoder"], 2, r"strange.*Odd|Odd.*strange"),
    ("fp16 on a CPU", ["--training.accelerator=cpu", "--training.precision=fp16"], 2, "precision fp16 needs a GPU"),
    ("no store", ["--store=nowhere"], 2, r"nowhere is no store .*cache an index first"),
    ("store of another Preprocess", ["--data.preprocess=ct"], 2, r"another Preprocess.*foreground_crop"),
    ("no scan in the split", ["--data.split=test"], 2, r"no scan with 3 axes in split 'test'.*4 'train', 1 'val'"),
    ("NaN loss", ["--objective.fail_at=1"], 1, r"the loss is not finite at step 2: samples 4, 5, 6, 7 of scans scan"),
    (
        "no Loss",
        ["--objective.fail_at=0", "--objective.fail=tensor"],
        2,
        r"error: ToyObjective.forward returns a Tensor, expected a medssl.types.Loss: try check_objective on it",
    ),
    (
        "no memory",
        ["--objective.fail_at=0", "--objective.fail=memory"],
        2,
        r"batch_size \(now 2\).*\(now \[8, 8, 6\]\)",
    ),
]


@pytest.mark.parametrize(("words", "code", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_mistakes_are_one_line(call, words, code, message):
    got, said = call(*words)
    assert re.search(message, said), said
    assert got == code
    assert said.count("error: ") == 1
    assert "Traceback" not in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(call):
    code, said = call("--training.accelerator=gpu")
    assert (code, "training.accelerator is gpu, but torch sees none" in said) == (2, True)


def test_other_errors_are_not_called_a_lack_of_memory(call, monkeypatch):
    def illegal(self, batch, step):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(toys.ToyObjective, "forward", illegal)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        call()


def test_a_crop_larger_than_every_volume_is_padded_and_counted(call):
    code, said = call("--objective.view.size=[24,24,24]", "--training.steps=1")
    assert code == 0
    assert "5 scans are smaller than the view and are padded" in said


def test_a_run_of_another_configuration_is_refused(call):
    assert call()[0] == 0
    code, said = call("--training.seed=1")
    assert code == 2
    assert "run/ is a run of another configuration: training.seed: 0 there, 1 here" in said
    code, said = call("--training.steps=3", "--training.extend=true")
    assert (code, "3 steps done" in said) == (0, True)


def test_another_size_of_a_step_is_refused_and_an_equal_one_is_not(call):
    assert call("--training.batch_size=2", "--training.accumulate=2")[0] == 0
    extended = ("--training.steps=3", "--training.extend=true")
    code, said = call("--training.batch_size=2", "--training.accumulate=1", *extended)
    assert code == 2
    assert "a step of run/ has 4 samples, this command's 2" in said
    assert call("--training.batch_size=4", "--training.accumulate=1", *extended)[0] == 0


def test_fewer_steps_than_the_run_has_are_refused_and_leave_its_configuration(call, tmp_path):
    assert call("--training.steps=4")[0] == 0
    before = (tmp_path / "run/config.yaml").read_bytes()
    code, said = call("--training.steps=2", "--training.extend=true")
    assert code == 2
    assert "training.steps is 2, and run/ is a run of 4 steps: training.extend goes on with more steps, give 4" in said
    assert (tmp_path / "run/config.yaml").read_bytes() == before


def test_more_steps_tell_what_becomes_of_rate_and_decay(call):
    words = ("--optimizer.learning_rate=1e-3", "--optimizer.warmup=0", "--optimizer.final_share=0")
    assert call("--training.steps=4", *words)[0] == 0
    code, said = call("--training.steps=8", "--training.extend=true", *words)
    assert code == 0
    assert "8 steps instead of 4 stretch the schedule: the learning rate goes from 0 to 0.0005" in said


@pytest.mark.parametrize("reason", ["compares", "distinct"])
def test_another_split_of_a_step_is_refused_where_the_loss_depends_on_it(call, monkeypatch, reason):
    words = ["--data.sampling.distinct_subjects=true"] if reason == "distinct" else []
    monkeypatch.setattr(toys.ToyObjective, "compares_samples", reason == "compares")
    assert call("--training.batch_size=2", "--training.accumulate=2", *words)[0] == 0
    more = ("--training.steps=3", "--training.extend=true", *words)
    code, said = call("--training.batch_size=4", "--training.accumulate=1", *more)
    assert code == 2
    what = "compares the samples of a micro-batch with each other" if reason == "compares" else "takes no subject twice"
    assert f"ToyObjective {what}" in said
    assert "run/ has 2 of them, this command 4; keep training.batch_size x processes as it was" in said


def test_a_full_memory_does_not_advise_fewer_negatives_in_silence(call, monkeypatch):
    monkeypatch.setattr(toys.ToyObjective, "compares_samples", True)
    code, said = call("--objective.fail_at=0", "--objective.fail=memory")
    assert code == 2
    assert (
        "out of memory: lower training.batch_size (now 2) in a new run: each sample is then compared with fewer" in said
    )
    assert "accumulate" not in said


def test_a_key_that_stands_twice_is_refused_with_its_lines(call, tmp_path):
    recipe = tmp_path / "twice.yaml"
    recipe.write_text(RECIPE.read_text() + "\noptimizer:\n  clip: 1\n  clip: 2\n")
    code, said = call(recipe=recipe)
    assert code == 2
    lines = recipe.read_text().splitlines()
    first = lines.index("  clip: 1") + 1
    assert f"the key 'clip' stands in line {first} and again in line {first + 1}" in said


def test_a_store_that_changed_is_refused(call, tmp_path):
    assert call()[0] == 0
    other = toys.toy_store(tmp_path / "other", count=6)
    code, said = call(f"--store={other}", "--training.steps=3", "--training.extend=true")
    assert code == 2
    assert "run/ was trained on another store" in said


def test_a_store_of_other_voxels_is_refused_and_one_of_touched_files_is_not(call, tmp_path):
    assert call()[0] == 0
    touched, changed = toys.toy_store(tmp_path / "touched", state="e"), toys.toy_store(tmp_path / "changed", first=1)
    code, said = call(f"--store={changed}", "--training.steps=3", "--training.extend=true")
    assert (code, "run/ was trained on another store" in said) == (2, True)
    code, said = call(f"--store={touched}", "--training.steps=3", "--training.extend=true")
    assert (code, "3 steps done" in said) == (0, True)


def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_without_it(call, tmp_path):
    assert call("--training.output.keep_every=1")[0] == 0
    last = tmp_path / "run/checkpoints/last.pt"
    content = last.read_bytes()
    last.unlink()  # its other names keep the whole content
    last.write_bytes(content[:-50])
    code, said = call("--training.output.keep_every=1")
    assert code == 2
    assert "last.pt is damaged" in said
    assert "goes on from step_000002.pt" in said
    last.unlink()
    assert "all 2 steps are done already" in call()[1]


def test_after_a_nan_the_last_good_checkpoint_is_kept(call, tmp_path):
    code, said = call("--objective.fail_at=5", "--training.steps=8")
    assert code == 1
    assert "the checkpoint of step 4 is kept" in said
    state = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in state["objective"].values())


def test_the_printed_loss_says_that_it_is_smoothed(call):
    code, said = call()
    assert code == 0
    assert "2 steps done, smoothed loss " in said
    assert "step 2/2  smoothed loss " in said
