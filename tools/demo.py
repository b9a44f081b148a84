"""spatext-demo: from an empty folder to pictures that obey a painted layout.

Draws a small world, trains a CLIP model, an autoencoder and a latent SpaText on it, samples
held-out layouts and has them judged by a program that shares no code with the model. Each stage is
an ordinary command of this package, printed before it runs; a stage that is done is not run again,
and one that was stopped goes on from its last checkpoint.
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

from spatext.tools.console import one_line_errors
from spatext.tools.demo_report import evaluate, write_report
from spatext.tools.provenance import write_text

NUM_TRAIN, NUM_VAL = 8000, 256


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
        config = compose_text(self.arguments) if self.tool == "train" else ""
        return hashlib.sha256("\n".join([earlier, self.title, config]).encode()).hexdigest()


def compose_text(arguments: tuple[str, ...]) -> str:
    with initialize_config_module("spatext.conf", version_base="1.3"):
        return OmegaConf.to_yaml(compose("train", overrides=list(arguments)))


def stages(out: Path) -> list[Stage]:
    """World, tokenizer, CLIP, autoencoder, SpaText."""
    shapes, base = out / "shapes", out / "base"
    data = (
        f"datamodule.shards={shapes}/shapes-train-*.tar",
        f"datamodule.val_shards={shapes}/shapes-val-*.tar",
    )

    def training(name: str, *overrides: str) -> Stage:
        run_dir = f"run_dir={out / name}"
        arguments = (f"experiment=demo_{name}", run_dir, "resume=true", *data, *overrides)
        return Stage(name, "train", arguments, out / name)

    return [
        Stage("shapes-train", "shapes", (str(shapes), "--num", str(NUM_TRAIN)), shapes),
        Stage(
            "shapes-val", "shapes", (str(shapes), "--num", str(NUM_VAL), "--split", "val"), shapes
        ),
        Stage(
            "tokenizer",
            "tokenizer",
            (
                f"{shapes}/shapes-train-*.tar",
                *("--out", str(base / "tokenizer"), "--vocab-size", "1024", "--max-length", "64"),
            ),
            base / "tokenizer",
        ),
        training(
            "clip",
            f"module.tokenizer.pretrained_model_name_or_path={base / 'tokenizer'}",
            f"callbacks.export.folder={base}",
        ),
        training("autoencoder", f"callbacks.export.folder={base}"),
        training("latent", f"base={base}"),
    ]


def run_stage(stage: Stage, out: Path, earlier: str) -> tuple[str, float]:
    """Run a stage unless it is done; returns its fingerprint and the seconds it took."""
    marker = out / "done" / f"{stage.name}.json"
    fingerprint = stage.fingerprint(earlier)
    record = json.loads(marker.read_text()) if marker.is_file() else {}
    if record.get("fingerprint") == fingerprint and record.get("seconds") is not None:
        print(f"[{stage.name}] done before, in {record['seconds']:.0f} s", flush=True)
        return fingerprint, record["seconds"]
    if record.get("fingerprint") != fingerprint and stage.folder.exists() and record:
        print(f"[{stage.name}] its configuration has changed: starting afresh", flush=True)
        shutil.rmtree(stage.folder)
    marker.parent.mkdir(parents=True, exist_ok=True)
    # Started but not done: a stop from here on resumes, as long as the fingerprint stays.
    spent = record.get("spent", 0.0) if record.get("fingerprint") == fingerprint else 0.0
    write_text(marker, json.dumps({"fingerprint": fingerprint, "spent": spent}))
    print(f"\n[{stage.name}] $ {stage.title}", flush=True)
    start = time.monotonic()
    try:
        command = [sys.executable, "-m", f"spatext.tools.{stage.tool}", *stage.arguments]
        subprocess.run(command, check=True)
    finally:
        spent += time.monotonic() - start
        write_text(marker, json.dumps({"fingerprint": fingerprint, "spent": spent}))
    write_text(marker, json.dumps({"fingerprint": fingerprint, "seconds": spent}))
    return fingerprint, spent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), help="folder to write")
    parser.add_argument("--num-layouts", type=int, default=96, help="held-out layouts to judge")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results first")
    args = parser.parse_args()
    out = args.out.resolve()
    if args.fresh:
        shutil.rmtree(out, ignore_errors=True)
    fingerprint, seconds = "", {}
    with one_line_errors():
        for stage in stages(out):
            fingerprint, seconds[stage.name] = run_stage(stage, out, fingerprint)
        start = time.monotonic()
        result = evaluate(out / "latent" / "checkpoints" / "last.ckpt", num=args.num_layouts)
        seconds["evaluation"] = time.monotonic() - start
        passed = write_report(out, result, seconds)
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
