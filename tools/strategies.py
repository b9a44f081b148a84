"""How the processes of a run share the work: Lightning's strategies, but started our way."""

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, StrategyRegistry
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

from spatext.callbacks.checkpoint_sharded import load_into_shards
from spatext.tools.launch import RankLauncher
from spatext.tools.torchrun import join_group_again

Sharding = Literal["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD"]


class Ddp(DDPStrategy):
    """Lightning's, with our way to start ranks; `options` are those of DistributedDataParallel."""

    def __init__(
        self,
        *,
        gradient_as_bucket_view: bool = True,
        static_graph: bool = False,
        find_unused_parameters: bool = False,
        timeout_minutes: int = 30,
        **options: Any,
    ) -> None:
        super().__init__(
            gradient_as_bucket_view=gradient_as_bucket_view,
            static_graph=static_graph,
            find_unused_parameters=find_unused_parameters,
            timeout=timedelta(minutes=timeout_minutes),
            **options,
        )
        self.static_graph = static_graph

    def setup(self, trainer: pl.Trainer) -> None:
        # torch fails within the first backward pass, which sends nothing yet.
        if self.static_graph and trainer.accumulate_grad_batches > 1:
            raise ValueError(
                "trainer.strategy.static_graph: found true, with trainer.accumulate_grad_batches="
                f"{trainer.accumulate_grad_batches}, expected false where gradients accumulate"
            )
        super().setup(trainer)

    def setup_environment(self) -> None:
        join_group_again(self)
        super().setup_environment()

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        assert self.cluster_environment is not None
        if self._start_method == "popen":
            self._launcher = RankLauncher(
                self.cluster_environment, self.num_processes, self.num_nodes
            )


class Fsdp(FSDPStrategy):
    """Lightning's, with our way to start ranks; `options` are those of FSDPStrategy."""

    def __init__(
        self,
        *,
        sharding_strategy: Sharding = "FULL_SHARD",
        min_num_params: int = 20_000_000,
        timeout_minutes: int = 30,
        **options: Any,
    ) -> None:
        """min_num_params: a submodule with as many parameters is gathered and freed as a whole."""
        super().__init__(
            sharding_strategy=sharding_strategy,
            auto_wrap_policy=partial(size_based_auto_wrap_policy, min_num_params=min_num_params),
            timeout=timedelta(minutes=timeout_minutes),
            **options,
        )

    def setup_environment(self) -> None:
        join_group_again(self)
        super().setup_environment()

    @property
    def mixed_precision_config(self) -> Any:
        """Lightning's, but buffers stay as they are: in half precision the first steps of a noise
        schedule would have no noise at all."""
        config = super().mixed_precision_config
        return None if config is None else replace(config, buffer_dtype=None)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Ours are folders, which Lightning takes for shards."""
        path = self.broadcast(checkpoint_path)
        return load_into_shards(self, self.checkpoint_io.load_checkpoint(path))

    def _configure_launcher(self) -> None:
        if self.root_device.type != "cuda":
            raise ValueError("trainer.strategy: FSDP found no GPU, expected one for each process")
        assert self.cluster_environment is not None
        if not self.cluster_environment.creates_processes_externally:
            self._launcher = RankLauncher(
                self.cluster_environment, self.num_processes, self.num_nodes
            )


def register_strategies() -> None:
    """So that `trainer.strategy=ddp`, and `auto` with several devices, mean these too."""
    StrategyRegistry.register("ddp", Ddp, override=True)
    StrategyRegistry.register("fsdp", Fsdp, override=True)
    for unused in (False, True):
        name = f"ddp_find_unused_parameters_{str(unused).lower()}"
        StrategyRegistry.register(name, Ddp, override=True, find_unused_parameters=unused)
