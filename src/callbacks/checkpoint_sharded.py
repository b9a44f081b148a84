"""A whole checkpoint into weights and moments that are spread over processes."""

from typing import Any

from lightning_fabric.strategies.fsdp import _get_full_state_dict_context
from lightning_fabric.strategies.model_parallel import _load_raw_module_state
from pytorch_lightning.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType


def load_into_shards(strategy: FSDPStrategy, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What FSDPStrategy.load_checkpoint does with a single file, for a checkpoint in memory.

    Each process holds all of the checkpoint while it takes its part. Gives back what is left for
    the Trainer to restore.
    """
    model, module = strategy.model, strategy.lightning_module
    assert model is not None
    assert module is not None
    weights = checkpoint.pop("state_dict")
    _load_raw_module_state(
        weights, module=model, world_size=strategy.world_size, strict=module.strict_loading
    )
    states = checkpoint.get("optimizer_states", [])
    if module.trainer.state.fn != "fit" or not states:
        return checkpoint
    whole = _get_full_state_dict_context(model, world_size=strategy.world_size, rank0_only=False)
    with whole:  # type: ignore[attr-defined]
        for optimizer, state in zip(strategy.optimizers, states, strict=True):
            named = FullyShardedDataParallel.rekey_optim_state_dict(
                state, OptimStateKeyType.PARAM_NAME, model
            )
            own = FullyShardedDataParallel.optim_state_dict_to_load(
                model=model, optim=optimizer, optim_state_dict=named
            )
            optimizer.load_state_dict(own)
    return checkpoint
