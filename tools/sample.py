"""spatext-sample: a scene file and a checkpoint in, pictures out."""

import json
from pathlib import Path

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from tqdm import tqdm

from spatext.callbacks.images import paint_scene
from spatext.datamodules.drawing import enlarge, grid, overlay, save_png
from spatext.datamodules.scenes import Scene, load_scenes
from spatext.modules.generate import Sampling, make_scheduler
from spatext.modules.spatext import SpaText
from spatext.tools.console import check_complete, one_line_errors
from spatext.tools.loading import load_model, pick_device


def sample_scenes(cfg: DictConfig) -> list[Path]:
    """Write <scene>-<seed>.png, <scene>-layout.png and <scene>.png, a row of all, per scene."""
    check_complete(cfg)
    scenes = load_scenes(
        OmegaConf.to_container(cfg.scene) if isinstance(cfg.scene, ListConfig) else str(cfg.scene)
    )
    sampling: Sampling = instantiate(cfg.sampling, _convert_="all")
    make_scheduler(sampling, {})  # a wrong name is told before the model is loaded
    if cfg.num_images < 1:
        raise ValueError(f"num_images={cfg.num_images}: expected at least 1")
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    model = load_model(
        cfg.checkpoint, device=pick_device(cfg.device), overrides=list(cfg.overrides)
    )
    check_sizes(scenes, model)
    folder = Path(cfg.out)
    folder.mkdir(parents=True, exist_ok=True)
    rows, written = [], []
    with tqdm(total=len(scenes) * sampling.num_steps, desc="sample", unit="step") as bar:
        for scene in scenes:
            first = scene.seed if cfg.seed is None else int(cfg.seed)
            seeds = torch.arange(first, first + int(cfg.num_images))
            images = paint_scene(model, scene, seeds, sampling, lambda *_: bar.update())
            recipe = {"scene": scene.name, "prompt": scene.prompt, "sampling": str(sampling)}
            recipe["texts"] = json.dumps(scene.texts)
            for seed, image in zip(seeds.tolist(), images, strict=True):
                path = folder / f"{scene.name}-{seed}.png"
                save_png(path, image, recipe | {"seed": str(seed)})
                written.append(path)
            layout = overlay(None, scene.ids(), scene.texts, prompt=scene.prompt)
            rows.append([layout, *(enlarge(image, layout.shape[1]) for image in images)])
            save_png(folder / f"{scene.name}-layout.png", layout)
            save_png(folder / f"{scene.name}.png", grid([rows[-1]]))
    save_png(folder / "grid.png", grid(rows))
    print(f"{len(written)} images in {folder}")
    return written


def check_sizes(scenes: list[Scene], model: SpaText) -> None:
    """Every side must be a multiple of what the denoiser halves it by."""
    multiple = model.backbone.multiple
    for scene in scenes:
        if any(side % multiple for side in scene.size):
            raise ValueError(
                f"scene {scene.name}: size {scene.size[0]}x{scene.size[1]}, expected multiples of "
                f"{multiple} for this model"
            )


@hydra.main(version_base="1.3", config_path="pkg://spatext.conf", config_name="sample")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        sample_scenes(cfg)


if __name__ == "__main__":
    main()
