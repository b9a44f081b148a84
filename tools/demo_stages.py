"""The demo's stages: ordinary commands of this package, and where their results lie."""

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import spatext.tools

NUM_TRAIN, NUM_VAL = 20000, 256
NUM_PAIR_SHARDS = 6  # of the 20; 1000 scenes each
WEIGHTS = Path(spatext.tools.__file__).parent / "weights" / "shapes"


@dataclass(frozen=True)
class Stage:
    """A command of this package, and the folder in which its results lie."""

    name: str
    tool: str
    arguments: tuple[str, ...]
    folder: Path

    @property
    def title(self) -> str:
        return f"spatext-{self.tool} {shlex.join(self.arguments)}"

    def fingerprint(self, earlier: str) -> str:
        """Of the command, of the configuration it composes, and of all stages before it."""
        composed = self.tool in ("train", "embed")
        config = compose_text(self.tool, self.arguments) if composed else ""
        return hashlib.sha256("\n".join([earlier, self.title, config]).encode()).hexdigest()


def compose_text(name: str, arguments: tuple[str, ...]) -> str:
    with initialize_config_module("spatext.conf", version_base="1.3"):
        return OmegaConf.to_yaml(compose(name, overrides=list(arguments)))


def latent_stages(out: Path, *, from_scratch: bool = False) -> list[Stage]:
    """The world, the parts of the base model where they are to be trained, SpaText, its prior."""
    base = out / "base" if from_scratch else WEIGHTS
    return [
        *drawing_stages(out),
        *((*encoder_stages(out, base), *denoiser_stages(out, base)) if from_scratch else ()),
        training(out, "latent", "demo_latent", f"base={base}"),
        *prior_stages(out, base),
    ]


def pixel_stages(out: Path, *, from_scratch: bool = False) -> list[Stage]:
    """The world, the encoders where they are to be trained, the decoder, its upsampler."""
    base = out / "base" if from_scratch else WEIGHTS
    return [
        *drawing_stages(out),
        *(encoder_stages(out, base) if from_scratch else ()),
        training(out, "pixel", "pixel_tiny", f"base={base}"),
        training(out, "upsampler", "upsampler_tiny", "trainer=ddp_sim", "num_threads=1"),
    ]


def training(out: Path, name: str, experiment: str, *overrides: str) -> Stage:
    arguments = (
        *(f"experiment={experiment}", f"run_dir={out / name}", "resume=true"),
        f"datamodule.shards={out / 'shapes-train'}",
        f"datamodule.val_shards={out / 'shapes-val'}",
    )
    return Stage(name, "train", (*arguments, *overrides), out / name)


def drawing_stages(out: Path) -> list[Stage]:
    stages = []
    for split, num in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        folder = out / f"shapes-{split}"
        arguments = (str(folder), "--num", str(num), "--split", split, "--workers", "2")
        stages.append(Stage(folder.name, "shapes", arguments, folder))
    return stages


def encoder_stages(out: Path, base: Path) -> list[Stage]:
    """Tokenizer, CLIP and its linear prior, text encoder."""
    tokenizer = base / "tokenizer"
    options = ("--out", str(tokenizer), "--vocab-size", "1024", "--max-length", "64")
    return [
        Stage("tokenizer", "tokenizer", (str(out / "shapes-train"), *options), tokenizer),
        training(
            out,
            "clip",
            "shapes_clip",
            f"module.tokenizer.pretrained_model_name_or_path={tokenizer}",
            f"callbacks.export.folder={base}",
        ),
    ]


def denoiser_stages(out: Path, base: Path) -> list[Stage]:
    """What a latent model starts from: autoencoder and UNet, then the autoencoder's decoder."""
    export = f"callbacks.export.folder={base}"
    unet = ("text_to_image", "shapes_text_to_image", f"module.backbone.path={base}")
    return [
        training(out, "autoencoder", "shapes_autoencoder", export),
        training(out, *unet, export),
        training(out, "decoder", "shapes_decoder", f"module.decoder_of={base}", export),
    ]


def prior_stages(out: Path, base: Path) -> list[Stage]:
    """The prior, trained on the embeddings of a part of the world."""
    pairs = (
        f"out={out / 'pairs'}",
        f"datamodule.shards='{out}/shapes-train/shapes-train-00000[0-{NUM_PAIR_SHARDS - 1}].tar'",
        *("datamodule.image_size=64", "datamodule.crop_size=32", "datamodule.min_area=0.02"),
        *("datamodule.num_workers=1", "num_threads=1"),
        *(f"clip.name=local-dir:{base / 'clip'}", "clip.pretrained=null"),
    )
    prior = (
        *("experiment=prior_tiny", f"run_dir={out / 'prior'}", "resume=true", f"base={base}"),
        f"datamodule.pairs={out / 'pairs'}",
        *("trainer=ddp_sim", "datamodule.batch_size=32"),  # of each of the two processes
    )
    return [
        Stage("pairs", "embed", pairs, out / "pairs"),
        Stage("prior", "train", prior, out / "prior"),
    ]
