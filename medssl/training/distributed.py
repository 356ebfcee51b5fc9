"""Which processes train together: one, or those that torchrun or SLURM started."""

from __future__ import annotations

import atexit
import os
import sys
from dataclasses import dataclass

from medssl.types import UserError


@dataclass(frozen=True)
class Layout:
    """This process among all processes of a run."""

    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files and the console."""
        return self.rank == 0


def end(code: int) -> int:
    """Ends a process that trained together with others, without the end of the interpreter; returns in any other.

    Threads of gloo outlive ``destroy_process_group`` where DDP was used. If one of them asks for the interpreter's lock
    while the interpreter ends, the process ends with SIGABRT: torchrun then takes a good run for a failed one.
    """
    from torch import distributed

    if layout().world_size > 1 and distributed.is_available() and distributed.is_initialized():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def under_slurm() -> bool:
    """Whether srun started this process as one of a batch job (an interactive shell does not count)."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in {"bash", "interactive", None}


def layout() -> Layout:
    """Reads the layout that torchrun or SLURM wrote into the environment.

    Raises:
        UserError: Machines with different numbers of processes.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        place = Layout(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_WORLD_SIZE"]))
    elif under_slurm() and "SLURM_PROCID" in env:
        tasks, nodes = int(env["SLURM_NTASKS"]), int(env.get("SLURM_NNODES", "1"))
        place = Layout(int(env["SLURM_PROCID"]), tasks, max(1, tasks // nodes))
    else:
        place = Layout()
    if place.world_size % place.local_world_size:
        message = f"{place.world_size} processes cannot be shared out evenly over machines of {place.local_world_size}"
        raise UserError(message)
    return place
