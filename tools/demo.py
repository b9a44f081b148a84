"""spatext-demo: from an empty folder to pictures that obey a painted layout.

Draws a small world, fine-tunes a tiny text-to-image model into a latent SpaText on it, trains a
prior on CLIP embeddings of the world, samples held-out layouts and has them judged by a program
that shares no code with the model. The tiny model comes with the package, as Stable Diffusion comes
from a hub; with --from-scratch its parts (CLIP, autoencoder, UNet) are trained first, which takes
about two hours.

Each stage is an ordinary command of this package, printed before it runs. A stage that is done is
not run again, and one that was stopped goes on from its last checkpoint.
"""

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import spatext.tools
from spatext.datamodules.documents import write_text
from spatext.tools.console import one_line_errors
from spatext.tools.demo_report import evaluate, write_report

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


class ChildFailure(ValueError):
    """A stage's command failed and has said why."""


def compose_text(name: str, arguments: tuple[str, ...]) -> str:
    with initialize_config_module("spatext.conf", version_base="1.3"):
        return OmegaConf.to_yaml(compose(name, overrides=list(arguments)))


def stages(out: Path, *, from_scratch: bool = False) -> list[Stage]:
    """The world, the parts of the base model where they are to be trained, SpaText, its prior."""
    base = out / "base" if from_scratch else WEIGHTS
    data = (
        f"datamodule.shards={out / 'shapes-train'}",
        f"datamodule.val_shards={out / 'shapes-val'}",
    )

    def training(experiment: str, *overrides: str) -> Stage:
        name = experiment.split("_", 1)[1]
        arguments = (f"experiment={experiment}", f"run_dir={out / name}", "resume=true")
        return Stage(name, "train", (*arguments, *data, *overrides), out / name)

    def drawing(split: str, num: int) -> Stage:
        folder = out / f"shapes-{split}"
        arguments = (str(folder), "--num", str(num), "--split", split, "--workers", "2")
        return Stage(folder.name, "shapes", arguments, folder)

    tokenizer = base / "tokenizer"
    parts = [
        Stage(
            "tokenizer",
            "tokenizer",
            (
                str(out / "shapes-train"),
                *("--out", str(tokenizer), "--vocab-size", "1024", "--max-length", "64"),
            ),
            tokenizer,
        ),
        training(
            "shapes_clip",
            f"module.tokenizer.pretrained_model_name_or_path={tokenizer}",
            f"callbacks.export.folder={base}",
        ),
        training("shapes_autoencoder", f"callbacks.export.folder={base}"),
        training(
            "shapes_text_to_image",
            f"module.backbone.path={base}",
            f"callbacks.export.folder={base}",
        ),
        training("shapes_decoder", f"module.decoder_of={base}", f"callbacks.export.folder={base}"),
    ]
    return [
        drawing("train", NUM_TRAIN),
        drawing("val", NUM_VAL),
        *(parts if from_scratch else ()),
        training("demo_latent", f"base={base}"),
        *prior_stages(out, base),
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


def run_stage(stage: Stage, out: Path, earlier: str) -> tuple[str, float]:
    """Run a stage unless it is done; returns its fingerprint and the seconds it took in all."""
    marker = out / "stages" / f"{stage.name}.json"
    fingerprint = stage.fingerprint(earlier)
    record = json.loads(marker.read_text()) if marker.is_file() else {}
    if record.get("fingerprint") != fingerprint:  # new, or of another configuration
        shutil.rmtree(stage.folder, ignore_errors=True)
        record = {"fingerprint": fingerprint, "done": False, "seconds": 0.0}
    if record["done"]:
        print(f"[{stage.name}] done before, in {record['seconds']:.0f} s", flush=True)
        return fingerprint, record["seconds"]
    marker.parent.mkdir(parents=True, exist_ok=True)
    write_text(marker, json.dumps(record))  # before the work: a stop from here on is resumed
    print(f"\n[{stage.name}] $ {stage.title}", flush=True)
    start = time.monotonic()
    try:
        command = [sys.executable, "-m", f"spatext.tools.{stage.tool}", *stage.arguments]
        if code := subprocess.run(command).returncode:
            raise ChildFailure(f"stage {stage.name} ended with exit code {code}; see above")
        record["done"] = True
    finally:
        record["seconds"] += time.monotonic() - start
        write_text(marker, json.dumps(record))
    return fingerprint, record["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), help="folder to write")
    parser.add_argument("--num-layouts", type=int, default=96, help="held-out layouts to judge")
    parser.add_argument("--from-scratch", action="store_true", help="train the base model too")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results first")
    args = parser.parse_args()
    out = args.out.resolve()
    if args.fresh:
        shutil.rmtree(out, ignore_errors=True)
    fingerprint, seconds = "", {}
    with one_line_errors():
        for stage in stages(out, from_scratch=args.from_scratch):
            fingerprint, seconds[stage.name] = run_stage(stage, out, fingerprint)
        start = time.monotonic()
        checkpoint = out / "latent" / "checkpoints" / "last.ckpt"
        result = evaluate(checkpoint, out / "prior" / "export", num=args.num_layouts)
        seconds["evaluation"] = time.monotonic() - start
        passed = write_report(out, result, seconds)
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
