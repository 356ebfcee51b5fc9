from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import toys

from medssl.training.loop import require_gradients
from medssl.types import UserError, ViewSpec

TESTS = Path(__file__).parent.parent
RECIPE = Path(__file__).with_name("toys.yaml")


def start(store, run, processes, *words):
    together = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "--"]
    return subprocess.Popen(
        [
            sys.executable, *(together if processes > 1 else ["-m"]), "medssl", "pretrain", "--config", RECIPE,
            "--store", store, "--run", run, "--encoder.norm", "instance", "--encoder.dropout", "0", *words,
        ],
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


@pytest.mark.ddp
def test_two_processes_equal_one_with_the_whole_batch(tmp_path):
    """Weights after four steps of two micro-batches, unequal numbers of hidden voxels; tolerance 1e-5 of float32."""
    store = toys.toy_store(tmp_path / "store")
    running = [
        start(store, tmp_path / "one", 1, "--training.batch_size=4", "--training.steps=4"),
        start(store, tmp_path / "two", 2, "--training.batch_size=2", "--training.steps=4"),
    ]
    said = [process.communicate(timeout=240)[0] for process in running]
    print(*said, sep="\n--- two processes\n")  # whole where the test fails, with the stack of a process that aborts
    assert [process.returncode for process in running] == [0, 0]
    assert "2 x 2 micro-batches x 2 processes" in said[1]
    one, two = (torch.load(tmp_path / run / "checkpoints/last.pt", weights_only=True) for run in ("one", "two"))
    assert one["progress"]["smoothed"] == pytest.approx(two["progress"]["smoothed"], rel=1e-5)
    for name, value in one["objective"].items():
        assert torch.allclose(value, two["objective"][name], atol=1e-5), name
    samples, _, embeddings = one["listeners"]["health"]["window"]
    assert samples.tolist() == two["listeners"]["health"]["window"][0].tolist() == list(range(32))
    assert torch.allclose(embeddings, two["listeners"]["health"]["window"][2], atol=1e-5)


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_other_optimizers_and_schedules_are_those_of_one_process(name, tmp_path):
    """The rate follows the batch of all processes; gradients are clipped for each parameter when they are complete."""
    store = toys.toy_store(tmp_path / "store")
    words = [
        *("--training.steps=6", f"--optimizer.name={name}", "--optimizer.learning_rate_per=0.5,16"),
        *("--optimizer.schedule=constant_then_decay", "--optimizer.clip_per=parameter", "--optimizer.clip=0.01"),
        *("--optimizer.weight_decay=1e-4,1e-4", '--optimizer.rates={"encoder.*": 0.5}'),
    ]
    running = [
        start(store, tmp_path / "one", 1, "--training.batch_size=4", *words),
        start(store, tmp_path / "two", 2, "--training.batch_size=2", *words),
    ]
    said = [process.communicate(timeout=240)[0] for process in running]
    print(*said, sep="\n--- two processes\n")
    assert [process.returncode for process in running] == [0, 0]
    rate = "learning rate 0.354 (0.5 for 16 samples, times the square root of 8 / 16)"
    assert [rate in text for text in said] == [True, True]
    one, two = (torch.load(tmp_path / run / "checkpoints/last.pt", weights_only=True) for run in ("one", "two"))
    before = torch.load(tmp_path / "one/checkpoints/before_decay.pt", weights_only=True)["objective"]
    for key, value in one["objective"].items():
        assert torch.allclose(value, two["objective"][key], atol=1e-5), key
    assert not all(torch.equal(value, before[key]) for key, value in one["objective"].items())


@pytest.mark.ddp
@pytest.mark.slow
def test_sigterm_to_torchrun_saves_once_and_the_run_goes_on(tmp_path):
    store = toys.toy_store(tmp_path / "store")
    words = ["--training.steps=100000", "--data.workers=1"]
    process = start(store, tmp_path / "run", 2, *words)
    log = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert said.count("stopped by SIGTERM at step") == 1, said
    state = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert f"at step {state['progress']['step']}: saved" in said


ENDING = """
import atexit, os, sys
from torch import distributed
from medssl.training.distributed import end

class Part:
    def __del__(self):
        os.write(1, b"the interpreter ended")

part = Part()
assert end(4) == 4  # nothing happens without a group
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
atexit.register(print, "at exit")
print("said")
end(3)
"""


def test_a_process_among_others_ends_before_the_interpreter_does(tmp_path):
    """Threads of gloo that ask for the lock of an interpreter that ends abort the process."""
    layout = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    done = subprocess.run(
        [sys.executable, "-c", ENDING, tmp_path / "meeting"],
        env={**os.environ, **layout}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "said\nat exit\n"), done.stderr


def test_parameters_without_a_gradient_are_named():
    objective = toys.ToyObjective(toys.ToyEncoder(), view=ViewSpec((4, 4, 4)))
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    require_gradients(objective)
    objective.other = torch.nn.Linear(2, 3)
    message = (
        r"the loss of ToyObjective gives 2 of \d+ parameters no gradient \(other.weight, other.bias\), and several "
        "processes need one for each"
    )
    with pytest.raises(UserError, match=message):
        require_gradients(objective)
    objective.other.requires_grad_(False)
    require_gradients(objective)


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_name_parameters_without_a_gradient(tmp_path):
    store = toys.toy_store(tmp_path / "store")
    said = start(store, tmp_path / "run", 2, "--objective.spare=true", "--training.steps=2").communicate(timeout=240)[0]
    assert "error: the loss of ToyObjective gives 1 of" in said
    assert "(spare)" in said
