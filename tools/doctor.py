"""spatext-doctor: versions, devices, data, disk and accounts, and what will go wrong.

    spatext-doctor                                   the machine alone
    spatext-doctor experiment=demo_latent base=BASE datamodule.shards=DIR/train
    spatext-doctor --build logger=wandb ...          build the model too: paths, size of checkpoints
    spatext-doctor --json ... > report.json
    spatext-preflight ...                            the data itself, counted and drawn

Takes the overrides of spatext-train and opens the shards as it does. Nothing is trained or written.
Exit code 1 if something fatal was found.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from spatext.tools import doctor_facts as facts
from spatext.tools import doctor_findings as findings
from spatext.tools.console import one_line_errors, root_cause
from spatext.tools.doctor_findings import GIB, Finding
from spatext.tools.doctor_job import Data, look_at_job, read_data
from spatext.tools.provenance import PACKAGES, git_commit

MORE_PACKAGES = ("torchvision", "wandb", "omegaconf", "safetensors", "tensorboard", "optuna")
BYTES_PER_WEIGHT = 16  # in a checkpoint: float32 weight, average and two moments of Adam
NO_RUN = "outputs"  # where run folders are made
# What data and weights are refused with; a store (s3, gs) may lack its package.
BROKEN = (ValueError, OSError, RuntimeError, ImportError)


def examine(overrides: Sequence[str], *, build: bool = False) -> dict[str, Any]:
    """{"facts", "findings", "fatal"}, as plain values.

    Without overrides the machine alone. ValueError for overrides that do not compose.
    """
    packages = facts.installed_packages()
    host, devices = facts.look_at_host(), facts.look_at_devices()
    tracking, hub = facts.look_at_tracking(packages), facts.look_at_hub()
    cfg = compose_job(overrides) if overrides else None
    disk = facts.look_at_disk(Path(NO_RUN if cfg is None else cfg.run_dir))
    seen: dict[str, Any] = {
        "commit": git_commit(),
        "packages": {
            name: packages.get(facts.canonical(name)) for name in (*PACKAGES, *MORE_PACKAGES)
        },
        **{"host": host, "devices": devices, "disk": disk, "wandb": tracking, "hub": hub},
    }
    found = [
        # The wheels of torchvision name the torch that they were compiled against.
        *(
            finding
            for owner in ("spatext", "torchvision")
            if owner in packages
            for finding in findings.check_packages(owner, requires(owner) or [], packages)
        ),
        *findings.check_builds(packages),
        *findings.check_ranks(host.ranks),
    ]
    checkpoint_bytes = None
    if cfg is not None:
        job = look_at_job(cfg, len(devices.gpus))
        found += findings.check_job(job, devices, host)
        found += findings.check_tracking(job, tracking)
        found += findings.check_hub(job, hub)
        seen["job"] = job
        if not any(name.startswith("datamodule.") for name in job.missing):
            seen["data"] = look_at_data(cfg)
            found += findings.check_data(job, seen["data"], host)
        checkpoint_bytes = size_of_last(Path(cfg.run_dir))
        if build and not job.missing:
            checkpoint_bytes, problem = build_model(cfg)
            found += [problem] if problem else []
    found += findings.check_disk(disk, checkpoint_bytes)
    plain = {k: asdict(v) if hasattr(v, "__dataclass_fields__") else v for k, v in seen.items()}
    fatal = any(finding.level == "fatal" for finding in found)
    return {"facts": plain, "findings": [asdict(finding) for finding in found], "fatal": fatal}


def compose_job(overrides: Sequence[str]) -> DictConfig:
    given = any(override.startswith("run_dir=") for override in overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("spatext.conf", version_base="1.3"):
            return compose("train", [*overrides, *([] if given else [f"run_dir={NO_RUN}"])])
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(str(error).splitlines()[0]) from None


def look_at_data(cfg: DictConfig) -> Data:
    try:
        return read_data(cfg)
    except (*BROKEN, InstantiationException) as error:
        return Data(error=one_line(error))


def build_model(cfg: DictConfig) -> tuple[int | None, Finding | None]:
    """Bytes of a checkpoint of the model, or why it cannot be built."""
    try:
        module = instantiate(cfg.module, _convert_="all")
    except (*BROKEN, InstantiationException) as error:
        return None, Finding("fatal", one_line(error), "spatext-train stops here: correct it")
    return BYTES_PER_WEIGHT * sum(p.numel() for p in module.parameters() if p.requires_grad), None


def one_line(error: BaseException) -> str:
    return " ".join(str(root_cause(error)).split())


def size_of_last(run_dir: Path) -> int | None:
    last = run_dir / "checkpoints" / "last.ckpt"
    if not last.exists():
        return None
    files = [last] if last.is_file() else [*last.resolve().rglob("*")]
    return sum(path.stat().st_size for path in files if path.is_file())


# --- as text -------------------------------------------------------------------------------------


def lines(report: dict[str, Any]) -> Iterator[str]:
    seen = report["facts"]
    yield f"commit      {seen['commit'] or 'not a checkout'}"
    versions = [f"{k} {v or 'not installed'}" for k, v in seen["packages"].items()]
    for i in range(0, len(versions), 4):
        yield f"{'' if i else 'packages':12}{', '.join(versions[i : i + 4])}"
    yield from machine_lines(seen)
    for name in ("job", "data"):
        if name in seen:
            items = [
                f"{key} {value}" for key, value in seen[name].items() if value not in (None, ())
            ]
            yield f"{name:12}{', '.join(items)}"
    yield ""
    if not report["findings"]:
        yield "nothing found that will go wrong"
        return
    yield "what will go wrong"
    order = ("fatal", "warning", "note")
    for found in sorted(report["findings"], key=lambda finding: order.index(finding["level"])):
        yield f"  {found['level']:9}{found['what']}: {found['do']}"


def machine_lines(seen: dict[str, Any]) -> Iterator[str]:
    host, devices, disk = seen["host"], seen["devices"], seen["disk"]
    shm = "none" if host["shm_bytes"] is None else f"{host['shm_bytes'] / GIB:.3g} GiB free"
    yield (
        f"cpu         {host['cores']} cores, torch uses {host['threads']} threads, OMP_NUM_THREADS "
        f"{host['omp_num_threads'] or 'not set'}, {'' if host['cpu_bfloat16'] else 'no '}bfloat16"
    )
    files = "no limit of" if host["open_files"] is None else host["open_files"]
    yield f"limits      /dev/shm {shm}, {files} open files"
    for i, gpu in enumerate(devices["gpus"]):
        major, minor = gpu["capability"]
        yield (
            f"gpu {i:<8}{gpu['name']}, {gpu['memory_bytes'] / GIB:.0f} GiB, "
            f"{gpu['free_bytes'] / GIB:.0f} free, capability {major}.{minor}, bfloat16 "
            f"{'yes' if major >= 8 else 'no'}"
        )
    built = f"CUDA {devices['cuda']}" if devices["cuda"] else "no CUDA"
    yield f"torch       built with {built}, backends {', '.join(devices['backends'])}"
    inodes = "no limit of" if disk["free_inodes"] is None else disk["free_inodes"]
    free = f"{disk['free_bytes'] / GIB:.3g} GiB"
    yield f"disk        {disk['folder']}: {free} and {inodes} inodes free"
    elsewhere = "another filesystem" if disk["tmp_elsewhere"] else "the same filesystem"
    yield f"tmp         {disk['tmp']}, {elsewhere}"
    wandb, hub = seen["wandb"], seen["hub"]
    login = "logged in" if wandb["logged_in"] else "not logged in"
    yield f"wandb       {login}, mode {wandb['mode']}"
    mode = "offline" if hub["offline"] else "online"
    yield f"hub         {mode}, {len(hub['cached'])} models in {hub['cache']}"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spatext-doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="as for spatext-train: key=value, group=name")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--build", action="store_true", help="load the model and its weights too")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    args = make_parser().parse_intermixed_args(arguments)
    with one_line_errors():
        report = examine(args.overrides, build=args.build)
    print(json.dumps(report, indent=2) if args.json else "\n".join(lines(report)))
    raise SystemExit(int(report["fatal"]))


if __name__ == "__main__":
    main()
