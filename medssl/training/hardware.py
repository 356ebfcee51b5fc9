"""What this machine has: whether it computes in half precision, and whether a training fits into its memory."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from medssl.training.memory import bytes_in_words, step_bytes
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from medssl.encoders.base import Encoder
    from medssl.objectives.base import Objective
    from medssl.training.settings import Training

SURE = 1.25  # an estimate counts every layer's output once: beyond so many times the memory nothing saves the run
_HALF = {"avx512_bf16", "amx_bf16", "bf16"}  # flags of processors that compute in bfloat16


def uses_gpu(accelerator: str) -> bool:
    """Whether a training runs on a GPU."""
    return accelerator != "cpu" and torch.cuda.is_available()


def device_type(accelerator: str) -> str:
    """What a training runs on: "cuda", "mps" (GPUs of Apple) or "cpu"."""
    if accelerator == "cpu":
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


@functools.cache
def processor_computes_in_bf16() -> bool:
    """Whether the processor has instructions for bfloat16; others emulate it, about ten times slower than float32."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not _HALF.isdisjoint(flags.split())


def thin_maps(network: nn.Module, views: Iterable[Sequence[int]]) -> bool:
    """Whether convolutions over volumes have maps of 2 voxels along the first axis.

    On processors, torch 2.14 returns memory that it has not written as gradients of their weights in bf16.

    Args:
        network: With its encoder as ``encoder``.
        views: Voxels of each view per axis.
    """
    wide = any(isinstance(m, nn.Conv3d) and any(side > 1 for side in m.kernel_size) for m in network.modules())
    strides = cast("Encoder", network.encoder).strides
    return wide and any(len(view) == 3 and view[0] // stride[0] == 2 for view in views for stride in strides)


def refuse_wrong_gradients(training: Training, network: nn.Module, views: Iterable[Sequence[int]]) -> None:
    """Refuses bf16 on a processor where its gradients would be wrong.

    Raises:
        UserError: Says which precision to take.
    """
    on_processor = device_type(training.accelerator) == "cpu"
    if training.precision == "bf16" and on_processor and thin_maps(network, views):
        message = (
            "processors compute wrong gradients in bf16 where maps of volumes have 2 voxels along the first axis, as "
            "here"
        )
        hint = "Set it to fp32 or auto, or choose another size of the view."
        raise UserError(message, key="training.precision", got="bf16", hint=hint)


def precision_of(training: Training) -> str:
    """The precision of a training: "auto" is bf16 where the device computes in it, else fp32."""
    if training.precision != "auto":
        return training.precision
    if uses_gpu(training.accelerator):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if processor_computes_in_bf16() else "fp32"


def precision_notes(training: Training) -> list[str]:
    """What the first line of a run tells of its precision."""
    if training.precision == "auto":
        return [f"training.precision auto: {precision_of(training)}"]
    if training.precision == "bf16" and not uses_gpu(training.accelerator) and not processor_computes_in_bf16():
        return [
            "this processor emulates bf16, about ten times slower than fp32: set training.precision to fp32 or auto"
        ]
    return []


def switch_recompute(objective: Objective, training: Training) -> None:
    """Lets the encoder compute again in the backward pass what it put out, where the training asks for it.

    Raises:
        UserError: The encoder has nothing that it can compute again.
    """
    if training.recompute and not objective.encoder.parts():
        name = type(objective.encoder).__name__
        message = f"{name} has no parts that can be computed again (its method `parts` names none)"
        hint = "Set it to false and lower training.batch_size."
        raise UserError(message, key="training.recompute", got=True, hint=hint)
    objective.encoder.recompute = training.recompute


def memory_limit(accelerator: str) -> float:
    """Bytes that a training may take: of the GPU, or of the machine or its container; infinity where nothing says."""
    if uses_gpu(accelerator):
        return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    try:
        limit = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError):
        return float("inf")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = min(limit, float(Path(file).read_text()))
        except (OSError, ValueError):  # no container, or "max"
            continue
    return limit


def refuse_too_large(objective: Objective, training: Training) -> None:
    """Refuses a training that cannot fit into the memory, before the first step.

    Raises:
        UserError: With the batch size that fits, or that not even one sample does.
    """
    needed = step_bytes(objective, half=precision_of(training) != "fp32")
    if needed is None:
        return
    fixed, sample = needed
    limit = memory_limit(training.accelerator)
    if fixed + training.batch_size * sample <= SURE * limit:
        return
    fits = int((0.8 * limit - fixed) // sample)
    sizes = ", ".join(str(list(view.size)) for view in objective.needs.views)
    if fits >= 1:
        remedy = f"training.batch_size {fits} fits (now {training.batch_size})"
        if not objective.compares_samples:
            accumulate = -(-training.batch_size * training.accumulate // fits)
            remedy += f", with training.accumulate {accumulate} the step is as large"
    else:
        remedy = f"not even one sample fits: make the views smaller (now {sizes}) or take a smaller encoder"
    if objective.encoder.parts() and not objective.encoder.recompute:
        remedy += "; training.recompute true takes less memory and a third more time"
    message = (
        f"a step needs about {bytes_in_words(fixed + training.batch_size * sample)} of memory and there are "
        f"{bytes_in_words(limit)}: {remedy}"
    )
    raise UserError(message)
