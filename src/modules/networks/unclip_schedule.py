"""The noise schedule as a folder in the layout of Karlo has it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffusers import DDPMScheduler, UnCLIPScheduler

from .diffusers_folder import DiffusersFolder

# The only one that UnCLIPScheduler has. Karlo's configurations are older than the option for it.
OWN_SCHEDULE = {"beta_schedule": "squaredcos_cap_v2"}
# Where UnCLIPScheduler steps, and what no file of it says.
SPACING = "linspace"
# "learned" is another reading of the six outputs than the bound's.
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range")
# What UnCLIPScheduler knows, and what it is told.
UNCLIP = {
    "beta_schedule": ("squaredcos_cap_v2",),
    "prediction_type": ("epsilon", "sample"),
    "variance_type": ("fixed_small_log", "learned_range"),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False, None),
    "thresholding": (False, None),
}
UNCLIP_KEYS = (
    *("num_train_timesteps", "variance_type", "clip_sample", "clip_sample_range"),
    *("prediction_type", "beta_schedule"),
)


def with_own_schedule(folder: DiffusersFolder, part: str) -> DiffusersFolder:
    """The folder, its UnCLIPScheduler naming the schedule of betas also where the file does not."""
    config = folder.configs[part]
    if config.get("_class_name") != UnCLIPScheduler.__name__:
        return folder
    return replace(folder, configs={**folder.configs, part: {**OWN_SCHEDULE, **config}})


def make_scheduler(options: Mapping[str, Any], option: str) -> DDPMScheduler:
    """With `options` of DDPMScheduler, which the configuration has under `option`. ValueError for a
    variance_type that it would take for a fixed one without a word."""
    if (found := options.get("variance_type", "fixed_small")) not in VARIANCES:
        expected = ", ".join(VARIANCES)
        raise ValueError(f"{option}.variance_type: found {found!r}, expected one of {expected}")
    return DDPMScheduler(**{"timestep_spacing": SPACING, **options})


def load_scheduler(folder: DiffusersFolder, part: str) -> DDPMScheduler:
    return DDPMScheduler.from_config({"timestep_spacing": SPACING, **folder.configs[part]})


def published_scheduler(config: Mapping[str, Any]) -> Any:
    """Karlo's own UnCLIPScheduler, which its pipeline asks for, where that says the same; else a
    DDPMScheduler."""
    if not all(config.get(key) in allowed for key, allowed in UNCLIP.items()):
        return DDPMScheduler.from_config(dict(config))
    return UnCLIPScheduler(**{key: config[key] for key in UNCLIP_KEYS if key in config})
