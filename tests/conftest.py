"""State that no test may inherit from the machine or from the test before it."""

import os

# Before any import of the libraries that read them, and for the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_ERROR_REPORTING"] = "false"  # it would call its makers
os.environ["HYDRA_FULL_ERROR"] = "1"
os.environ["OMP_NUM_THREADS"] = str(NUM_THREADS := 1)  # the tests run in a process per core

import logging
import random
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import distributed

torch.set_num_threads(NUM_THREADS)
# A shell ignores it for what it starts in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What makes a process a rank, which Lightning's environments set and leave there.
RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (third parties draw from the global stream)
    torch.manual_seed(0)
    before = {name: os.environ.get(name) for name in RANK_VARIABLES}
    rank_zero_only.rank = 0
    # Hydra's configuration of a job turns off the loggers that it finds.
    logging.root.setLevel(logging.WARNING)
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    torch.set_default_dtype(torch.float32)
