"""Lightning Fabric: devices, precision and processes of a training. The only module that imports Lightning.

Several processes train by DDP, each with the whole objective. Sharding (FSDP2) is not offered: teachers, queues and
counts of objectives are read and moved outside the forward pass that a sharded module gathers its parameters for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision, Precision
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.strategies import DDPStrategy
from torch import nn

from medssl.training import hardware
from medssl.training.distributed import layout, under_slurm

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from medssl.objectives.base import Objective
    from medssl.training.settings import Training
    from medssl.types import Batch, Step


def make_fabric(training: Training) -> Fabric:
    """Fabric for the device and the precision of a training; joins the processes that torchrun or SLURM started."""
    place = layout()
    device = hardware.device_type(training.accelerator)
    plugins: list[Any] = [precision_plugin(hardware.precision_of(training), device)]
    plugins += [SLURMEnvironment(auto_requeue=False)] if under_slurm() else []
    # buffers are equal by construction: batch norm is summed over the processes
    several = DDPStrategy(find_unused_parameters=False, broadcast_buffers=False)
    fabric = Fabric(
        accelerator=device,
        strategy=several if place.world_size > 1 else "auto",
        devices=place.local_world_size if place.world_size > 1 else 1,
        num_nodes=place.world_size // place.local_world_size,
        plugins=plugins,
    )
    fabric.launch()
    return fabric


class AutocastWithoutCache(MixedPrecision):
    """Mixed precision without the cache of converted weights, of the forward pass alone.

    With the cache, gradients of a weight that is used several times are added up in half precision. Inputs keep their
    type: affines and spacings of views need single precision.
    """

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast for the forward pass."""
        kind = torch.bfloat16 if self.precision == "bf16-mixed" else torch.float16
        return torch.autocast(self.device, dtype=kind, cache_enabled=False)

    def convert_input(self, data: Any) -> Any:
        """Leaves inputs as they are."""
        return data

    def convert_output(self, data: Any) -> Any:
        """Leaves outputs as they are."""
        return data


def precision_plugin(precision: str, device: str) -> Precision:
    """The plugin of a precision ("fp32", "bf16" or "fp16"); "fp16" scales the loss."""
    if precision == "fp32":
        return Precision()
    return AutocastWithoutCache("bf16-mixed" if precision == "bf16" else "16-mixed", device)


class ForwardCall:
    """A forward pass: the arguments, then the loss. Fabric and DDP would copy and cast dataclasses and tensors."""

    def __init__(self, batch: Batch, step: Step) -> None:
        self.batch, self.step = batch, step
        self.loss: Any = None


class ForwardPass(nn.Module):
    """The objective as Fabric wraps it."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, call: ForwardCall) -> ForwardCall:
        """Computes the loss of a call."""
        call.loss = self.objective(call.batch, call.step)
        return call
