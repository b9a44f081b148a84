"""Images a second of annotating: shards in, sidecars out, against the panoptic model alone.

    python benchmarks/annotate.py
    python benchmarks/annotate.py --device cuda --model eomt-large mask2former-swin-large \
        --batch-size 32 --decode-threads 16 --num 4096 --dollars-per-hour 3.5

"alone" is the model with its post-processing, on batches that lie on the device. "whole" reads and
decodes JPEGs, calls the model, encodes and writes, one process and one device. Both take turns in
this process; medians over rounds after a warm-up, a ratio is the median of those of the rounds.

Models have the published shapes and random weights, which compute as fast as trained ones. So that
they find something, `object_threshold` is set to what lets about 12 queries of an image pass; the
maps are more ragged than real ones and take longer to encode.
"""

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import make_parser, parse, report
from transformers import (
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)

from spatext.datamodules.annotation_engines import Engine, Frame
from spatext.datamodules.annotation_work import Annotator, Reading, Source
from spatext.datamodules.panoptic_classes import COCO
from spatext.datamodules.panoptic_models import PanopticModel

NUM_KEPT = 12  # queries of an image that count as found
STAGES = ["stage1", "stage2", "stage3", "stage4"]
LABELS = dict(enumerate(COCO))
PREPROCESS: dict[str, Any] = {
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


@dataclass
class Row:
    model: str
    input_size: int
    batch_size: int
    alone: float
    whole: float
    share: float
    dollars: float


def mask2former(swin: SwinConfig, num_queries: int, **options: Any) -> tuple[Any, Any]:
    config = Mask2FormerConfig(
        backbone_config=swin, num_queries=num_queries, id2label=LABELS, **options
    )
    return Mask2FormerForUniversalSegmentation(config), Mask2FormerImageProcessor(**PREPROCESS)


def tiny_mask2former() -> tuple[Any, Any]:
    """Swin-T's stages, halved."""
    swin = SwinConfig(
        image_size=224, embed_dim=48, depths=[1, 1, 2, 1], num_heads=[2, 4, 8, 16],
        window_size=7, out_features=STAGES,
    )  # fmt: skip
    small = {"feature_size": 64, "mask_feature_size": 64, "hidden_dim": 64, "encoder_layers": 2}
    small |= {"decoder_layers": 3, "dim_feedforward": 256, "encoder_feedforward_dim": 128}
    return mask2former(swin, 50, **small)


def large_mask2former() -> tuple[Any, Any]:
    """facebook/mask2former-swin-large-coco-panoptic."""
    swin = SwinConfig(
        image_size=384, embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48],
        window_size=12, out_features=STAGES,
    )  # fmt: skip
    return mask2former(swin, 200)


def eomt(size: int, **options: Any) -> tuple[Any, Any]:
    config = EomtConfig(image_size=size, patch_size=16, id2label=LABELS, **options)
    net = EomtForUniversalSegmentation(config)
    net.attn_mask_probs.zero_()  # as at the end of its training
    sizes = {"shortest_edge": size, "longest_edge": size}
    return net, EomtImageProcessor(**PREPROCESS, do_pad=True, size=sizes)


def tiny_eomt() -> tuple[Any, Any]:
    return eomt(
        256, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_blocks=2,
        num_queries=50, num_upscale_blocks=2,
    )  # fmt: skip


def large_eomt() -> tuple[Any, Any]:
    """tue-mps/coco_panoptic_eomt_large_640."""
    return eomt(
        640, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, num_blocks=4,
        num_queries=200, num_upscale_blocks=2,
    )  # fmt: skip


# And the side of their input, where it may be chosen
MODELS: dict[str, tuple[Callable[[], tuple[Any, Any]], int | None]] = {
    "mask2former-tiny": (tiny_mask2former, 256),
    "eomt-tiny": (tiny_eomt, None),
    "mask2former-swin-large": (large_mask2former, 1024),
    "eomt-large": (large_eomt, None),
}


def load(name: str, folder: Path, device: torch.device) -> PanopticModel:
    build, input_size = MODELS[name]
    torch.manual_seed(0)
    for part in build():
        part.save_pretrained(folder / name)
    model = PanopticModel(str(folder / name), input_size=input_size, overlap_threshold=0.0)
    return model.to(device)


def calibrate(model: PanopticModel, pixels: torch.Tensor, sizes: list[tuple[int, int]]) -> None:
    """Lets about NUM_KEPT queries of an image pass."""
    bf16 = model.bf16 and pixels.is_cuda
    with torch.inference_mode(), torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
        logits = model.net(pixel_values=model.normalised(pixels, sizes)).class_queries_logits
    scores, labels = logits.float().softmax(dim=-1).max(dim=-1)
    scores = scores[labels != logits.shape[-1] - 1]
    kept = min(NUM_KEPT * len(pixels), len(scores) - 1)
    model.thresholds["object_threshold"] = scores.sort(descending=True).values[kept].item()


def write_shard(path: Path, num: int, side: int) -> Path:
    """JPEGs of `side` x 3/4 `side` with as many bytes as photographs have."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(num):
            coarse = rng.integers(0, 256, (side // 48, side // 64, 3), dtype=np.uint8)
            size = (side, side * 3 // 4)
            pixels = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
            noisy = pixels + rng.normal(0, 12, pixels.shape)
            file = io.BytesIO()
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
            info = tarfile.TarInfo(f"{number:06d}.jpg")
            info.size = file.tell()
            tar.addfile(info, io.BytesIO(file.getvalue()))
    return path


def measure(name: str, shard: Path, folder: Path, args: argparse.Namespace) -> Row:
    device = torch.device(args.device)
    model = load(name, folder, device)
    engine = Engine(model, device)
    rates: list[tuple[float, float]] = []
    with Annotator(
        engine,
        batch_size=args.batch_size,
        threads=args.decode_threads,
        reading=Reading(min_side=args.min_side),
    ) as annotator:
        source = Source(shard, annotator)
        frames = [frame for frame in source.frames if isinstance(frame, Frame)]
        source.close()
        batches = [
            on_device(frames[i : i + args.batch_size], device)
            for i in range(0, min(len(frames), 4 * args.batch_size), args.batch_size)
        ]
        calibrate(model, *batches[0])
        for _ in range(args.repeats + 1):
            rates.append(
                (alone(model, batches, len(frames)), whole(annotator, shard, folder / "out"))
            )
    found = rates[1:]
    rate = statistics.median(w for _, w in found)
    return Row(
        model=name,
        input_size=model.input_size,
        batch_size=args.batch_size,
        alone=statistics.median(a for a, _ in found),
        whole=rate,
        share=statistics.median(w / a for a, w in found),
        dollars=args.dollars_per_hour / 3600 / rate * 1e6,
    )


def on_device(frames: list[Frame], device: torch.device) -> tuple[torch.Tensor, list[Any]]:
    pixels = torch.from_numpy(np.stack([f.whole for f in frames if f.whole is not None]))
    return pixels.permute(0, 3, 1, 2).contiguous().to(device), [f.whole_size for f in frames]


def alone(model: PanopticModel, batches: list[Any], num: int) -> float:
    start, done = time.perf_counter(), 0
    while done < num:
        for pixels, sizes in batches:
            model.segment(pixels, sizes)  # it waits for the device to learn what was found
            done += len(sizes)
    return done / (time.perf_counter() - start)


def whole(annotator: Annotator, shard: Path, out: Path) -> float:
    start = time.perf_counter()
    source = Source(shard, annotator)
    manifest = annotator.annotate(source, out, {})
    source.close()
    return manifest.num_images / (time.perf_counter() - start)


COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.model,
    "input": lambda row: str(row.input_size),
    "batch": lambda row: str(row.batch_size),
    "alone img/s": lambda row: f"{row.alone:.1f}",
    "whole img/s": lambda row: f"{row.whole:.1f}",
    "whole / alone": lambda row: f"{row.share:.2f}",
    "$ / million": lambda row: f"{row.dollars:.0f}" if row.dollars else "",
}


def main() -> None:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["mask2former-tiny"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--decode-threads", type=int, default=4)
    parser.add_argument("--num", type=int, default=64, help="images of a round, in one shard")
    parser.add_argument("--side", type=int, default=640, help="longer side of the JPEGs")
    parser.add_argument("--min-side", type=int, default=896, help="below which none is decoded")
    parser.add_argument("--dollars-per-hour", type=float, default=0.0, help="of the machine's GPU")
    args = parse(parser, counts=("batch_size", "decode_threads", "num", "side"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shard = write_shard(folder / "0.tar", args.num, args.side)
        rows = [measure(model, shard, folder, args) for model in args.model]
    title = f"Annotating {args.num} JPEGs with {args.side} pixels on the longer side"
    report(rows, COLUMNS, title, args, left=("model",))


if __name__ == "__main__":
    main()
