"""A small number that all ranks agree on."""

import pytorch_lightning as pl
import torch
from torch import distributed
from torch.distributed import ProcessGroup


class Agreement:
    """The largest of a number over the ranks, by way of the CPU.

    A device is not waited for: beside another backend than gloo there is a gloo group of its own.
    A call took 0.25 ms (median) between two processes on a busy machine of two cores. All ranks
    must make it.
    """

    def __init__(self) -> None:
        self.group: ProcessGroup | None = None
        self.alone = True

    def setup(self, trainer: pl.Trainer) -> None:
        """Called on all ranks, once their process group exists."""
        self.group, self.alone = None, trainer.world_size == 1
        if not self.alone and distributed.get_backend() != "gloo":
            group = distributed.new_group(backend="gloo")
            assert isinstance(group, ProcessGroup)  # this rank is in it
            self.group = group

    def largest(self, number: int) -> int:
        if self.alone:
            return number
        numbers = torch.tensor(number)
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX, group=self.group)
        return int(numbers)
