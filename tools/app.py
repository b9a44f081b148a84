"""spatext-app: a page on which regions are painted, described and sampled."""

import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

import spatext.conf
from spatext.datamodules.scenes import Scene, load_scenes
from spatext.modules.cascade import size_multiple
from spatext.modules.sampling_options import Sampling, make_scheduler
from spatext.tools.console import check_complete, one_line_errors
from spatext.tools.loading import load_model, pick_device, read_checkpoint
from spatext.tools.recipes import fingerprint, make_origin
from spatext.tools.upsamplers import check_upsamplers, use_upsamplers

if TYPE_CHECKING:
    from starlette.applications import Starlette

LIBRARIES = ("starlette", "uvicorn")
EXAMPLES = Path(spatext.conf.__file__).parent / "scenes"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
FALLBACK_SIZE = 512  # where the training's configuration does not tell one


def build_app(cfg: DictConfig) -> "Starlette":
    """The page, with its model loaded. Its libraries are an extra, hence imported here."""
    check_complete(cfg)
    try:
        from spatext.tools.web.limits import Limits
        from spatext.tools.web.painter import ModelPainter
        from spatext.tools.web.routes import make_app
        from spatext.tools.web.site import Site
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        raise ValueError(
            f"spatext-app: found no {error.name}, expected it installed: pip install 'spatext[app]'"
        ) from None
    sampling: Sampling = instantiate(cfg.sampling, _convert_="all")
    make_scheduler(sampling, {})  # a wrong name is told before the model is loaded
    examples = load_examples(cfg.examples)
    named = cfg.upsamplers
    upsamplers = check_upsamplers(list(named) if isinstance(named, ListConfig) else named)
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    state = read_checkpoint(Path(cfg.checkpoint), "checkpoint")
    overrides = list(cfg.overrides)
    model = load_model(cfg.checkpoint, device=pick_device(cfg.device), overrides=overrides)
    if upsamplers is not None:
        use_upsamplers(model, upsamplers)
    limits = Limits(multiple=size_multiple(model), **cfg.limits)
    size = canvas_size(cfg.size, state["config"])
    limits.check_size(size)
    origin = make_origin(
        sampling=sampling,
        model=fingerprint(model),
        overrides=overrides,
        precision="32-true",
        checkpoint=str(cfg.checkpoint),
        step=int(state.get("global_step", 0)),
        upsamplers=upsamplers,
    )
    site = Site(str(state["config"].get("name", "spatext")), size, sampling, limits, examples)
    return make_app(
        site,
        ModelPainter(model, origin),
        names=list(cfg.hosts),
        addresses=cfg.host not in LOOPBACK,
    )


def load_examples(examples: Any) -> list[Scene]:
    if examples is None:
        return load_scenes(str(EXAMPLES))
    return load_scenes(list(examples) if isinstance(examples, ListConfig) else str(examples))


def canvas_size(size: Any, config: dict[str, Any]) -> tuple[int, int]:
    """(height, width) as the option says, otherwise what the model was trained on."""
    if size is None:
        size = config.get("datamodule", {}).get("image_size", FALLBACK_SIZE)
    pair = list(size) if isinstance(size, ListConfig) else [size, size]
    if len(pair) != 2 or not all(isinstance(side, int) for side in pair):
        raise ValueError(f"size={size}: expected a whole number or [height, width]")
    return pair[0], pair[1]


def open_socket(host: str, port: int) -> socket.socket:
    """Listening, so that a taken port is told before the model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"host={host} port={port}: {reason}, expected an address of this machine and a free "
            "port"
        ) from None


def serve(cfg: DictConfig) -> None:
    """Until it is interrupted."""
    check_complete(cfg)
    with open_socket(cfg.host, cfg.port) as listening:
        app = build_app(cfg)
        import uvicorn

        if cfg.host not in LOOPBACK:
            print(
                f"warning: host={cfg.host} opens the page to everyone who reaches this machine; "
                "there is no password",
                file=sys.stderr,
            )
        host = f"[{cfg.host}]" if ":" in cfg.host else cfg.host
        print(f"spatext-app: http://{host}:{listening.getsockname()[1]}  (Ctrl-C ends it)")
        sys.stdout.flush()
        options = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        with suppress(KeyboardInterrupt):  # raised again by uvicorn when all is closed
            uvicorn.Server(options).run(sockets=[listening])


@hydra.main(version_base="1.3", config_path="pkg://spatext.conf", config_name="app")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        serve(cfg)


if __name__ == "__main__":
    main()
