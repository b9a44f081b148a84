"""Our sweepers and our launcher, under the names that Hydra can find them by."""

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.plugin import Plugin

from spatext.tools.sweep_grid import GridSweeper
from spatext.tools.sweep_optuna import OptunaSweeper
from spatext.tools.sweep_process import ProcessLauncher

PLUGINS: tuple[type[Plugin], ...] = (GridSweeper, OptunaSweeper, ProcessLauncher)

# Files of conf/hydra/ whose names other plugins give to configurations of theirs. Hydra would
# merge the two; with hydra-optuna-sweeper installed it would refuse to.
OURS = {"launcher": ("joblib", "submitit_local", "submitit_slurm"), "sweeper": ("optuna",)}


def register_plugins() -> None:
    """Make hydra_plugins.spatext.NAME a valid `_target_` of hydra/sweeper and hydra/launcher.

    Hydra takes plugins from its namespace package hydra_plugins alone. It looks for them by
    listing folders, which an editable installation does not have there.
    """
    plugins = Plugins.instance()
    for plugin in PLUGINS:
        plugins.register(plugin)
        plugins.class_name_to_class[f"hydra_plugins.spatext.{plugin.__name__}"] = plugin
    stored = ConfigStore.instance().repo["hydra"]
    for group, names in OURS.items():
        for name in names:
            stored.get(group, {}).pop(f"{name}.yaml", None)
