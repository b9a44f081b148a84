"""spatext-export: a checkpoint of spatext-train in, a folder that diffusers loads out.

    spatext-export RUN/checkpoints/last.ckpt my-model
    spatext-export RUN/checkpoints/last.ckpt my-model weights=raw half=true sampling.scale=5

OUTPUT holds unet, vae, text_encoder, tokenizer, scheduler, clip and prior as safetensors (of a
pixel model: decoder and text_proj, and upsampler_1 and upsampler_2 where it has them), and a model
card (README.md) with the training configuration and places to fill in. It needs neither the
checkpoint nor the folders that the training started from:

    from spatext.pipeline import load_pipeline
    images = load_pipeline("my-model").to("cuda")("scene.yaml").images

Options, KEY=VALUE:
    weights       ema (the averaged ones) | raw (those of the last step)
    half          true stores float16, half the size; loading brings float32 back
    replace       true replaces an export that is there already
    upsamplers    of a pixel model: folders or checkpoints, as in spatext-sample; [] is none
    sampling.*    defaults of the pipeline, as in spatext-sample; its scheduler is a component
    overrides     of the checkpoint's configuration, for folders that have moved and another prior:
                  'overrides=["module.backbone.path=/new"]'
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, get_args

from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spatext.callbacks.export import halve, whole_folder
from spatext.modules.pixel_spatext import PixelSpaText
from spatext.modules.sampling_options import Sampling, make_scheduler
from spatext.modules.spatext import SpaText
from spatext.pipeline import pipeline_of
from spatext.pipeline_folder import read_index
from spatext.tools.console import one_line_errors
from spatext.tools.export_record import make_record, without_folders
from spatext.tools.loading import Weights, load_model, override, read_checkpoint
from spatext.tools.upsamplers import check_upsamplers, use_upsamplers

DEFAULTS = {"weights": "ema", "half": False, "replace": False, "upsamplers": None, "overrides": []}


def export(
    checkpoint: Path,
    out: Path,
    *,
    weights: Weights = "ema",
    half: bool = False,
    replace: bool = False,
    upsamplers: list[str] | None = None,
    overrides: Sequence[str] = (),
    sampling: Sampling | None = None,
) -> Path:
    """Write the folder `out` whole, or not at all. ValueError, FileNotFoundError or FileExistsError
    for what is wrong, all that can be told without the model before it is loaded."""
    sampling = sampling or Sampling()
    make_scheduler(sampling, {})
    check_output(out, replace)
    named = check_upsamplers(upsamplers)
    state = read_checkpoint(checkpoint, "checkpoint", checksums=True, training=True)
    config = override(OmegaConf.create(state["config"]), overrides)
    check_module(checkpoint, config, upsamplers=named)
    model = load_model(checkpoint, overrides=overrides, weights=weights)
    if named is not None:
        use_upsamplers(model, named)
    record = {"files": "float16" if half else "float32"}
    record |= make_record(checkpoint, state, config, weights)
    if named:
        record["upsamplers"] = ", ".join(without_folders(named))
    pipeline = pipeline_of(model, sampling=sampling, record=record)
    with whole_folder(out) as temporary:
        pipeline.save_pretrained(temporary)
        if half:
            halve(temporary)
    return out


def check_output(out: Path, replace: bool) -> None:
    """Whether it can be written, and what is there is ours to delete."""
    if out.exists() and not (replace and out.is_dir()):
        what = "a folder" if out.is_dir() else "a file"
        hint = "a new name, or replace=true" if out.is_dir() else "the name of a folder"
        raise FileExistsError(f"{out}: found {what}, expected {hint}")
    if out.exists() and any(out.iterdir()):
        read_index(out, f"replace=true {out}")
    try:
        place = next(p for p in out.absolute().parents if p.exists())
        with TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{out}: {reason}, expected a folder that can be written") from None


def check_module(checkpoint: Path, config: DictConfig, *, upsamplers: Sequence[str] | None) -> None:
    """Whether it is one that paints, and has a use for these, told from its configuration."""
    target = str(OmegaConf.select(config, "module._target_"))
    made: Any = get_method(target)
    if isinstance(made, type) and not issubclass(made, SpaText):
        raise ValueError(f"checkpoint={checkpoint}: found a {target}, expected a SpaText model")
    if upsamplers and isinstance(made, type) and not issubclass(made, PixelSpaText):
        found = target.rpartition(".")[2]
        raise ValueError(f"upsamplers: found with a {found}, expected a PixelSpaText, or none")


def read_options(words: Sequence[str]) -> dict[str, Any]:
    """Those of `export`. ValueError naming an unknown or malformed one."""
    config = OmegaConf.create({**DEFAULTS, "sampling": asdict(Sampling())})
    OmegaConf.set_struct(config, True)
    OmegaConf.set_struct(config.sampling.scheduler_options, False)
    for word in words:
        key, sign, _ = word.partition("=")
        try:
            if not sign:
                raise ValueError(f"{word}: expected KEY=VALUE after CHECKPOINT and OUTPUT")
            config.merge_with_dotlist([word])
        except OmegaConfBaseException:
            expected = [*DEFAULTS, *(f"sampling.{name}" for name in config.sampling)]
            raise ValueError(
                f"{key}: unknown option, expected one of {', '.join(expected)}"
            ) from None
    options: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    if (found := options["weights"]) not in get_args(Weights):
        raise ValueError(f"weights: found {found!r}, expected one of {get_args(Weights)}")
    for name in ("half", "replace"):
        if not isinstance(options[name], bool):
            raise ValueError(f"{name}={options[name]}: expected true or false")
    options["upsamplers"] = check_upsamplers(options["upsamplers"])
    return {**options, "sampling": Sampling(**options["sampling"])}


def describe(out: Path) -> str:
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    return f"{out}: {sum(sizes) / 1e6:.1f} MB in {len(sizes)} files; fill in {out / 'README.md'}"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spatext-export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a .ckpt folder")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder to write")
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="see above")
    return parser


def main(arguments: list[str] | None = None) -> None:
    given = make_parser().parse_args(arguments)
    with one_line_errors():
        out = export(given.checkpoint, given.output, **read_options(given.options))
        print(describe(out))


if __name__ == "__main__":
    main()
