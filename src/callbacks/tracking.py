"""Weights & Biases, as a tracker that a run does not depend on."""

import json
import logging
import os
import secrets
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from ..datamodules.documents import write_text
from .redact import redact

log = logging.getLogger(__name__)

RUN_ID = "wandb_run_id.txt"
STEP = "trainer/global_step"
DATA_DIR = "WANDB_DATA_DIR"


class Tracker(Logger):
    """One W&B run for all processes, kept by rank 0.

    The run's id is in `save_dir`/wandb_run_id.txt; with `resume` (whatever is true) it is taken
    from there, so that a resumed or requeued training continues its run. The step is a metric of
    its own: W&B drops what is logged at a lower step than before, as it would be after a resume
    from an older checkpoint. Members of a `group` add the name of their folder to `name`. Values
    of keys that look like secrets are hidden, on the command line too, and provenance.json of the
    folder is part of the configuration.

    Nothing that fails here stops a run. Without a server that answers within about `init_timeout`
    seconds the run is kept offline, and `wandb sync` can upload it later; without the package
    nothing is kept; any other exception is logged, the first of its kind as a warning.
    `finish_timeout` bounds the wait for the last uploads.
    """

    def __init__(
        self,
        project: str,
        save_dir: str,
        *,
        resume: bool | str = False,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        entity: str | None = None,
        mode: str | None = None,
        init_timeout: float = 60.0,
        finish_timeout: float = 120.0,
    ) -> None:
        super().__init__()
        self.folder, self.resume = Path(save_dir).absolute(), bool(resume)
        if group and name:
            name = f"{name}-{self.folder.name}"
        self.options: dict[str, Any] = {
            "project": project,
            "dir": save_dir,
            "name": name,
            "group": group,
            "job_type": job_type,
            "tags": [*tags] or None,
            "notes": notes,
            "entity": entity,
            "mode": mode,
        }
        self.timeouts = {
            "init_timeout": init_timeout,
            "login_timeout": init_timeout,  # of the prompt for a key, where there is a terminal
            "finish_timeout": finish_timeout,
            "finish_timeout_raises": True,
        }
        self.run: Any = None
        self.warned: set[str] = set()

    @property
    def name(self) -> str:
        return self.options["project"]

    @property
    def version(self) -> str | None:
        """The run's id."""
        path = self.folder / RUN_ID
        return path.read_text().strip() if path.is_file() else None

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; on other ranks, and where there is none, an object that ignores all."""
        if self.run is None:
            self.run = self._start() or _DummyExperiment()
        return self.run

    def has_run(self) -> bool:
        """Starts it, if that has not been tried."""
        return not isinstance(self.experiment, _DummyExperiment)

    @rank_zero_only
    def send(self, build: Callable[[Any], Mapping[str, Any]], step: int) -> None:
        """Log `build(wandb)` at `step`; it is not called where there is no W&B run."""
        if not self.has_run():
            return
        with self._forgiving("logging failed"), self._staging():
            import wandb

            self.experiment.log({**build(wandb), STEP: step})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self._forgiving("logging failed"):
            self.experiment.log(dict(metrics) if step is None else {**metrics, STEP: step})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        if not self.has_run():
            return
        config = dict(vars(params) if isinstance(params, Namespace) else params)
        facts = self.folder / "provenance.json"
        with self._forgiving("recording the configuration failed"):
            if facts.is_file():
                config["provenance"] = json.loads(facts.read_text())
            self.experiment.config.update(redact(config), allow_val_change=True)

    @rank_zero_only
    def log_files(self, name: str, path: Path, aliases: Sequence[str]) -> None:
        """A new version of the model artifact `name`: a file, or all files below a folder."""
        if not self.has_run():
            return
        with self._forgiving(f"upload of {path} failed"), self._staging():
            import wandb

            artifact = wandb.Artifact(name, type="model", metadata={"path": str(path)})
            add = artifact.add_dir if path.is_dir() else artifact.add_file
            add(str(path), skip_cache=True)
            self.experiment.log_artifact(artifact, aliases=[*aliases])

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the W&B run, so that the next training of this process has its own; what is logged
        after this continues it."""
        run, self.run = self.run, None
        if run is None or isinstance(run, _DummyExperiment):
            return
        command = f"wandb sync {run.settings.sync_dir}"
        with self._forgiving(f"the upload has not ended; later: {command}"):
            run.finish(exit_code=0 if status == "success" else 1)
        if run.settings.mode == "offline":
            log.info("W&B was offline; to upload this run: %s", command)

    def _start(self) -> Any:
        """A run; None where W&B cannot be had."""
        try:
            import wandb
        except Exception as error:  # missing, or broken by what it depends on
            self._warn("it cannot be imported; the run goes on without it", error)
            return None
        if wandb.run is not None:  # of a training that failed in this process
            with self._forgiving("an earlier run could not be ended"):
                wandb.finish(1)
        try:
            return self._init(wandb, {})
        except Exception as error:  # nothing of W&B may stop a training
            self._warn("the run is kept offline", error)
        with self._forgiving("the run goes on without it"):
            wandb.teardown(1)  # or the id counts as in use
            return self._init(wandb, {"mode": "offline"})
        return None

    def _init(self, wandb: Any, options: dict[str, Any]) -> Any:
        known = type(wandb.Settings()).model_fields
        settings = {name: value for name, value in self.timeouts.items() if name in known}
        options = {**self.options, **options, "id": self._run_id(), "resume": "allow"}
        with _shown_command():
            run = wandb.init(**options, settings=wandb.Settings(**settings))
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        return run

    def _run_id(self) -> str:
        if not (self.resume and self.version):
            self.resume = True  # a second attempt is the same run
            write_text(self.folder / RUN_ID, secrets.token_hex(4))
        assert self.version is not None
        return self.version

    @contextmanager
    def _staging(self) -> Iterator[None]:
        """Inside the block, copies for the upload, tables' media among them, are kept in the run
        folder: W&B's own choice is the home folder, where an offline run would leave them."""
        before = os.environ.get(DATA_DIR)
        os.environ[DATA_DIR] = before or str(self.folder / "wandb" / "data")
        try:
            yield
        finally:
            if before is None:
                del os.environ[DATA_DIR]

    @contextmanager
    def _forgiving(self, consequence: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # nothing of W&B may stop a training
            self._warn(consequence, error)

    def _warn(self, consequence: str, error: Exception) -> None:
        level = logging.DEBUG if consequence in self.warned else logging.WARNING
        self.warned.add(consequence)
        log.log(level, "W&B: %s (%s: %s)", consequence, type(error).__name__, _brief(error))


@contextmanager
def _shown_command() -> Iterator[None]:
    """W&B records sys.argv: inside the block it is without secrets."""
    command = sys.argv
    sys.argv = redact(command)
    try:
        yield
    finally:
        sys.argv = command


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + " ..."
