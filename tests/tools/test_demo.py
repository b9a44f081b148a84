import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

import spatext.conf
from runs import compose_config
from spatext.datamodules.crops import crop_planes
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.networks.latent import LatentBackbone
from spatext.modules.networks.prior_schedulers import KARLO
from spatext.modules.networks.priors import LinearPrior
from spatext.modules.sampling_options import Sampling
from spatext.tools.console import check_complete
from spatext.tools.demo import ChildFailure, run_stage
from spatext.tools.demo_latent import PRIORS, THRESHOLDS, Result, evaluate, write_report
from spatext.tools.demo_scores import LAYOUT_SEED, score
from spatext.tools.demo_stages import WEIGHTS, Stage, latent_stages, pixel_stages
from spatext.tools.shapes_world import draw_scene, heldout_layouts
from tiny import make_prior_transformer, no_seeds

CONF = Path(spatext.conf.__file__).parent

# --- stages --------------------------------------------------------------------------------------


def drawing(out: Path, *arguments: str) -> Stage:
    """The quickest of all commands."""
    folder = out / "shapes"
    options = (str(folder), "--num", "2", "--size", "16", "--workers", "1", *arguments)
    return Stage("shapes", "shapes", options, folder)


def record(out: Path) -> dict[str, object]:
    return json.loads((out / "stages" / "shapes.json").read_text())


@pytest.mark.slow
def test_a_stage_is_run_once_and_again_when_it_changes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stage = drawing(tmp_path)
    fingerprint, seconds = run_stage(stage, tmp_path, "earlier")
    shard = stage.folder / "shapes-train-000000.tar"
    assert shard.is_file()
    assert record(tmp_path) == {"fingerprint": fingerprint, "done": True, "seconds": seconds}
    assert seconds > 0.1
    assert f"$ spatext-shapes {stage.folder} --num 2" in capfd.readouterr().out

    witness = stage.folder / "witness"
    witness.touch()
    assert run_stage(stage, tmp_path, "earlier") == (fingerprint, seconds)
    assert witness.exists()
    assert "done before" in capfd.readouterr().out

    # After another stage before it, its results are forgotten.
    changed, _ = run_stage(stage, tmp_path, "another")
    assert changed != fingerprint
    assert shard.is_file()
    assert not witness.exists()
    assert record(tmp_path)["fingerprint"] == changed


@pytest.mark.slow
def test_a_stage_that_was_stopped_goes_on(tmp_path: Path) -> None:
    stage = drawing(tmp_path, "--seed", "-1")
    with pytest.raises(ChildFailure, match="stage shapes ended with exit code 1"):
        run_stage(stage, tmp_path, "")
    failed = record(tmp_path)
    assert not failed["done"]
    assert failed["seconds"] > 0.1
    stage.folder.mkdir(exist_ok=True)
    (stage.folder / "half").touch()
    with pytest.raises(ChildFailure):
        run_stage(stage, tmp_path, "")
    assert (stage.folder / "half").exists()  # for the command to continue from
    assert record(tmp_path)["seconds"] > failed["seconds"] + 0.1  # of both attempts


def test_fingerprint_is_of_command_configuration_and_past(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = latent_stages(tmp_path)[-1]
    found = [
        stage.fingerprint(""),
        stage.fingerprint("earlier"),
        replace(stage, arguments=(*stage.arguments, "seed=1")).fingerprint(""),
    ]
    assert latent_stages(tmp_path)[-1].fingerprint("") == found[0]

    # The same command with another configuration below it.
    folder = shutil.copytree(CONF, tmp_path / "conf")
    (folder / "train.yaml").write_text(
        (CONF / "train.yaml").read_text().replace("seed: 0", "seed: 2")
    )
    spec = spec_from_file_location("spatext.conf", folder / "__init__.py")
    assert spec is not None
    monkeypatch.setitem(sys.modules, "spatext.conf", module_from_spec(spec))
    assert len({*found, stage.fingerprint("")}) == 4


@pytest.mark.parametrize("from_scratch", [False, True])
@pytest.mark.parametrize("stages", [latent_stages, pixel_stages])
def test_each_training_has_all_it_needs(
    tmp_path: Path, stages: Callable[..., list[Stage]], from_scratch: bool
) -> None:
    made: set[Path] = set()
    bases: set[str] = set()
    for stage in stages(tmp_path, from_scratch=from_scratch):
        if stage.tool == "train":
            config = compose_config("train", list(stage.arguments))
            check_complete(config)
            assert Path(config.run_dir) == stage.folder
            assert config.resume is True
            if stage.name == "prior":
                assert Path(config.datamodule.pairs) in made
            else:
                assert {Path(config.datamodule.shards), Path(config.datamodule.val_shards)} <= made
            bases |= {config.base} if "base" in config else set()
        if stage.tool == "embed":
            check_complete(compose_config("embed", list(stage.arguments)))
            (pattern,) = (a for a in stage.arguments if a.startswith("datamodule.shards="))
            assert pattern.startswith(f"datamodule.shards='{tmp_path / 'shapes-train'}/")
        made.add(stage.folder)
    trained = {"latent", "prior"} if stages is latent_stages else {"pixel", "upsampler"}
    assert {tmp_path / name for name in trained} <= made
    assert bases == {str(tmp_path / "base" if from_scratch else WEIGHTS)}


def test_both_demos_draw_one_world(tmp_path: Path) -> None:
    latent, pixel = latent_stages(tmp_path), pixel_stages(tmp_path)
    assert latent[:2] == pixel[:2]
    assert not {stage.folder for stage in latent[2:]} & {stage.folder for stage in pixel[2:]}
    upsampler = compose_config("train", list(pixel[-1].arguments))
    assert upsampler.callbacks.export.folder == str(tmp_path / "upsampler" / "export")


def test_the_base_model_of_the_package_knows_the_world() -> None:
    """The files are there, are read as configured, and hold what was trained."""
    config = compose_config("train", ["experiment=demo_latent", "run_dir=RUN", f"base={WEIGHTS}"])
    clip, width = Clip(config.module.clip.name), config.module.backbone.embed_dim
    assert (clip.embed_dim, clip.image_size) == (width, config.datamodule.crop_size)
    scenes = [draw_scene(0, "test", index) for index in range(8)]
    pairs = [(scene, segment) for scene in scenes for segment in scene.segments if segment.isthing]
    crops = [crop_planes(scene.image, scene.ids == segment.id, 32) for scene, segment in pairs]
    texts = [segment.text for _, segment in pairs]
    image = clip.embed_images(torch.from_numpy(np.stack(crops)))
    prior = LinearPrior(config.module.prior.path)
    text = prior(clip.encode_texts(texts), no_seeds(len(texts)))
    assert text.shape == (len(texts), width)
    nearest = (normalize(image) @ normalize(text).mT).argmax(dim=1)
    assert (nearest == torch.arange(len(texts))).float().mean() > 0.5  # by chance 1 / len(texts)

    backbone = LatentBackbone.from_pretrained(str(WEIGHTS), embed_dim=width)
    pixels = torch.from_numpy(np.stack([scene.image for scene in scenes])).movedim(-1, 1)
    images = pixels / 127.5 - 1
    x_0 = backbone.encode(images)
    assert abs(x_0.std() - 1) < 0.2
    error = (backbone.decode(x_0) - images).square().mean()
    assert 10 * torch.log10(4 / error) > 20  # dB


# --- report --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prior")
    DiffusionPrior(make_prior_transformer(), KARLO).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def result(checkpoint: Path, prior: Path) -> Result:
    return evaluate(checkpoint, prior, num=4, sampling=Sampling(num_steps=1))


def test_true_drawings_pass_and_an_untrained_model_does_not(result: Result) -> None:
    layouts = heldout_layouts(LAYOUT_SEED, 96)  # as many as the demo takes
    drawn = score([layout.scene.image for layout in layouts], layouts)
    for threshold in THRESHOLDS:
        assert threshold.met(drawn[threshold.score]), threshold.score
        failed = result.scores[threshold.score]
        assert not threshold.met(failed) or threshold.score == "shuffled_iou"
    assert result.num_layouts == 4
    assert result.num_regions == sum(len(layout.texts) for layout in layouts[:4])
    assert result.ceiling["matched"] == 1


def test_the_report_says_what_was_met(
    result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {"shapes-train": 12.3, "latent": 456.0}
    assert not write_report(tmp_path / "bad", result, seconds)
    scores = {"local_iou": 0.65, "shuffled_iou": 0.2, "matched": 0.876}
    by_prior = result.by_prior | {"diffusion": scores}
    assert write_report(tmp_path / "good", replace(result, by_prior=by_prior), seconds)
    bad, good = ((tmp_path / name / "report.md").read_text() for name in ("bad", "good"))
    assert bad in (printed := capsys.readouterr().out)
    assert good in printed
    assert "| NO |" in bad
    assert "| NO |" not in good
    for threshold in THRESHOLDS:
        row = f"| {threshold.text} | {scores[threshold.score]:.3f} | {threshold.wanted} |"
        assert row in good
    assert "| diffusion prior | 0.650 | 0.200 | 0.876 |" in good
    for name, title in PRIORS.items():
        cells = [f"{result.by_prior[name][t.score]:.3f}" for t in THRESHOLDS]
        assert f"| {title} | {' | '.join(cells)} |" in bad
    for line in ("| shapes-train | 12 |", "| latent | 456 |", "| all | 468 |"):
        assert line in good
    picture = np.asarray(Image.open(tmp_path / "good" / "grid.png"))
    np.testing.assert_array_equal(picture, result.picture)
