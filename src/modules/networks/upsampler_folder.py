"""Whether a folder or hub name holds an upsampler in the layout of Karlo, told from its small files
before any weights are read."""

from pathlib import Path

from huggingface_hub import snapshot_download

from .diffusers_folder import DiffusersFolder, Part, check_scheduler, named_errors, open_folder
from .unclip_schedule import with_own_schedule

FIRST, LAST, SCHEDULER = "super_res_first", "super_res_last", "super_res_scheduler"
LAYOUT = {
    FIRST: Part(("UNet2DModel",), weights="diffusion_pytorch_model"),
    LAST: Part(("UNet2DModel",), weights="diffusion_pytorch_model"),
    SCHEDULER: Part((), config="scheduler_config.json"),
}
REQUIRED = (FIRST, SCHEDULER)
OPTION, CONFIG = "upsampler.path", "config.json"
IMAGE = 3  # channels


def open_upsampler(path: str) -> DiffusersFolder:
    """The configurations of super_res_first, super_res_scheduler and, where it is there,
    super_res_last. Raises ValueError as `open_folder` does."""
    local = Path(path).expanduser()
    files = local if local.is_dir() or str(path).startswith(("/", ".", "~")) else last_of(path)
    parts = (FIRST, LAST, SCHEDULER) if (files / LAST).is_dir() else REQUIRED
    return with_own_schedule(open_folder(path, parts, OPTION, LAYOUT), SCHEDULER)


def last_of(name: str) -> Path:
    """Of a hub name, to see whether it has that part."""
    with named_errors(name, OPTION, REQUIRED):
        return Path(snapshot_download(name, allow_patterns=[f"{LAST}/*.json"]))


def check_upsampler(
    folder: DiffusersFolder, embed_dim: int | None, prediction_type: str | None
) -> int:
    """The width of the embeddings that the trained network is to take: `embed_dim`, or what it
    takes already where that is None.

    Raises ValueError for other numbers of channels, and for a schedule that is none or is for
    another `prediction_type`.
    """
    width = check_channels(folder, embed_dim)
    check_scheduler(folder, prediction_type, SCHEDULER)
    config, place = folder.configs[SCHEDULER], f"{SCHEDULER}/scheduler_config.json"
    learned = folder.configs[FIRST].get("out_channels") == 2 * IMAGE
    found = config.get("variance_type", "fixed_small")
    if learned != (found == "learned_range"):
        expected = "learned_range" if learned else "a fixed one"
        wanted = f"{expected}, as {FIRST} has {6 if learned else 3} outputs"
        raise folder.refuse(f"{place}: variance_type", found, wanted)
    return width


def check_channels(folder: DiffusersFolder, embed_dim: int | None) -> int:
    first = folder.configs[FIRST]
    found = first.get("in_channels", IMAGE)
    own = found - 2 * IMAGE
    if own < 0 or (embed_dim is not None and own not in (0, embed_dim)):
        wide = f", or {2 * IMAGE + embed_dim} as they are with ST" if embed_dim else ""
        expected = f"{2 * IMAGE}, of x_t and of the low-resolution image{wide}"
        raise folder.refuse(f"{FIRST}/{CONFIG}: in_channels", found, expected)
    if (found := first.get("out_channels", IMAGE)) not in (IMAGE, 2 * IMAGE):
        expected = f"{IMAGE}, or {2 * IMAGE} with a learned variance"
        raise folder.refuse(f"{FIRST}/{CONFIG}: out_channels", found, expected)
    last = folder.configs.get(LAST, {"in_channels": 2 * IMAGE})
    if (other := last.get("in_channels", IMAGE)) != 2 * IMAGE:
        raise folder.refuse(f"{LAST}/{CONFIG}: in_channels", other, 2 * IMAGE)
    if (other := last.get("out_channels", IMAGE)) not in (IMAGE, found):
        raise folder.refuse(f"{LAST}/{CONFIG}: out_channels", other, f"{IMAGE} as {FIRST}")
    return own if embed_dim is None else embed_dim
