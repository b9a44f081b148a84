"""spatext-demo: from an empty folder to pictures that obey a painted layout.

Draws a small world, fine-tunes a tiny text-to-image model into a latent SpaText on it, trains a
prior on CLIP embeddings of the world, samples held-out layouts and has them judged by a program
that shares no code with the model. The tiny model comes with the package, as Stable Diffusion comes
from a hub; with --from-scratch its parts (CLIP, autoencoder, UNet) are trained first, which takes
about two hours.

--pixel trains the pixel model on the same world: a decoder of 32 px from random weights and an
upsampler to 64 px, beside the CLIP that comes with the package. Both demos may share a folder.

Each stage is an ordinary command of this package, printed before it runs. A stage that is done is
not run again, and one that was stopped goes on from its last checkpoint.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from spatext.datamodules.documents import write_text
from spatext.tools import demo_latent, demo_pixel
from spatext.tools.console import one_line_errors
from spatext.tools.demo_stages import Stage, latent_stages, pixel_stages


class ChildFailure(ValueError):
    """A stage's command failed and has said why."""


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


def examine_latent(out: Path, num: int, seconds: dict[str, float]) -> bool:
    """Whether every threshold is met; `seconds` gains the time that this took."""
    start = time.monotonic()
    checkpoint = out / "latent" / "checkpoints" / "last.ckpt"
    result = demo_latent.evaluate(checkpoint, out / "prior" / "export", num=num)
    seconds["evaluation"] = time.monotonic() - start
    return demo_latent.write_report(out, result, seconds)


def examine_pixel(out: Path, num: int, seconds: dict[str, float]) -> bool:
    start = time.monotonic()
    checkpoint = out / "pixel" / "checkpoints" / "last.ckpt"
    result = demo_pixel.evaluate(checkpoint, out / "upsampler" / "export", num=num)
    seconds["evaluation"] = time.monotonic() - start
    return demo_pixel.write_report(out, result, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), help="folder to write")
    parser.add_argument("--num-layouts", type=int, default=96, help="held-out layouts to judge")
    parser.add_argument("--pixel", action="store_true", help="the pixel model, not the latent one")
    parser.add_argument("--from-scratch", action="store_true", help="train the base model too")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results first")
    args = parser.parse_args()
    out = args.out.resolve()
    if args.fresh:
        shutil.rmtree(out, ignore_errors=True)
    stages = pixel_stages if args.pixel else latent_stages
    examine = examine_pixel if args.pixel else examine_latent
    fingerprint, seconds = "", {}
    with one_line_errors():
        for stage in stages(out, from_scratch=args.from_scratch):
            fingerprint, seconds[stage.name] = run_stage(stage, out, fingerprint)
        passed = examine(out, args.num_layouts, seconds)
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
