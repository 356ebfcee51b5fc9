"""Memory and half precision of the machine: told or refused before the first step."""

from __future__ import annotations

import errno

import pytest
import torch
from commands import toys
from objectives.small import mae

from medssl.training import hardware
from medssl.training import run as running
from medssl.training.memory import memory_in_words, step_bytes
from medssl.training.settings import Training
from medssl.types import UserError, ViewSpec


def toy(**changes) -> toys.ToyObjective:
    return toys.ToyObjective(toys.ToyEncoder(), view=ViewSpec((8, 8, 8)), **changes)


def test_a_step_beyond_the_memory_is_refused_with_the_batch_that_fits(monkeypatch):
    fixed, sample = step_bytes(toy(), half=False)
    monkeypatch.setattr(hardware, "memory_limit", lambda _accelerator: float(fixed + 20 * sample))
    training = Training(batch_size=64, accumulate=2, accelerator="cpu")
    fits = int((0.8 * (fixed + 20 * sample) - fixed) // sample)
    with pytest.raises(UserError, match=rf"training\.batch_size {fits} fits \(now 64\), with training\.accumulate"):
        hardware.refuse_too_large(toy(), training)
    hardware.refuse_too_large(toy(), Training(batch_size=fits, accelerator="cpu"))


def test_contrast_is_not_told_to_accumulate(monkeypatch):
    monkeypatch.setattr(toys.ToyObjective, "compares_samples", True)
    fixed, sample = step_bytes(toy(), half=False)
    monkeypatch.setattr(hardware, "memory_limit", lambda _accelerator: float(fixed + 20 * sample))
    with pytest.raises(UserError, match=r"fits \(now 64\)$"):
        hardware.refuse_too_large(toy(), Training(batch_size=64, accelerator="cpu"))


def test_where_not_one_sample_fits_the_views_are_named(monkeypatch):
    monkeypatch.setattr(hardware, "memory_limit", lambda _accelerator: 100.0)
    with pytest.raises(UserError, match=r"not even one sample fits: make the views smaller \(now \[8, 8, 8\]\)"):
        hardware.refuse_too_large(toy(), Training(batch_size=1, accelerator="cpu"))


def test_hidden_patches_that_are_dropped_take_no_memory():
    few, many = mae(2, mask_ratio=0.75), mae(2, mask_ratio=0.25)
    assert step_bytes(many, half=False)[1] == pytest.approx(3 * step_bytes(few, half=False)[1], rel=0.01)
    assert step_bytes(few, half=False)[1] == pytest.approx(2 * step_bytes(few, half=True)[1], rel=0.01)


def test_the_limit_of_the_machine_is_a_number_of_bytes():
    assert 1e8 < hardware.memory_limit("cpu") < 1e14


@pytest.mark.parametrize(("computes", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_half_precision_where_the_processor_computes_in_it(monkeypatch, computes, expected):
    monkeypatch.setattr(hardware, "processor_computes_in_bf16", lambda: computes)
    training = Training(precision="auto", accelerator="cpu")
    assert hardware.precision_of(training) == expected
    assert hardware.precision_notes(training) == [f"training.precision auto: {expected}"]


def test_emulated_half_precision_is_told(monkeypatch):
    monkeypatch.setattr(hardware, "processor_computes_in_bf16", lambda: False)
    (note,) = hardware.precision_notes(Training(precision="bf16", accelerator="cpu"))
    assert note.startswith("this processor emulates bf16, about ten times slower than fp32")
    assert hardware.precision_notes(Training(precision="fp32", accelerator="cpu")) == []
    monkeypatch.setattr(hardware, "processor_computes_in_bf16", lambda: True)
    assert hardware.precision_notes(Training(precision="bf16", accelerator="cpu")) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:113] data. DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_a_full_memory_names_the_settings_on_a_cpu_too(error):
    class Data:
        workers = 2

    with pytest.raises(UserError, match=r"out of memory: lower training\.batch_size \(now 4\)"):
        with running.explained(Training(), Data(), toy()):
            raise error


def test_other_system_errors_are_left_alone():
    class Data:
        workers = 2

    with pytest.raises(OSError, match="No space"), running.explained(Training(), Data(), toy()):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_weights_alone_are_counted_where_maps_cannot_be(monkeypatch):
    monkeypatch.setattr("medssl.training.memory.count_activations", lambda *_: None)
    hardware.refuse_too_large(toy(), Training(batch_size=10**9, accelerator="cpu"))
    assert "at least" in memory_in_words(toy(), 4, half=torch.cuda.is_available())
