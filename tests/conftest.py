"""State that no test may inherit from the machine or from the test before it."""

import os

# Before any import of the libraries that read them, and for the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_ERROR_REPORTING"] = "false"  # it would call its makers
os.environ["HYDRA_FULL_ERROR"] = "1"
os.environ["OMP_NUM_THREADS"] = str(NUM_THREADS := 2)

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import distributed

torch.set_num_threads(NUM_THREADS)


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (third parties draw from the global stream)
    torch.manual_seed(0)
    yield
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    torch.set_default_dtype(torch.float32)
