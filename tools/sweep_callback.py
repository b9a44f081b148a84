"""What frames a sweep, whatever its sweeper and launcher: a name before it, a table after it."""

import logging
import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from spatext.callbacks.stops import EXIT_PREEMPTED
from spatext.tools.results import CONTINUES, OK
from spatext.tools.sweep_folder import read_sweep
from spatext.tools.sweep_report import write_report

log = logging.getLogger("spatext.tools.sweep")

VARIABLE = "SPATEXT_SWEEP"  # conf/train.yaml: sweep_name


class SweepReport(Callback):
    """Sets the exit code of a sweep: 0 where all trials ended well, 1 where one failed, and that
    of a preemption where some were interrupted but none failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """All launchers hand their environment on to the trials."""
        os.environ[VARIABLE] = Path(config.hydra.sweep.dir).name

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        statuses: set[str] = set()
        try:  # of what is raised here Hydra would only warn, and exit with 0
            statuses |= {trial.result.status for trial in read_sweep(folder).trials}
            write_report(folder)
        except Exception:
            log.exception("the report of %s failed; again by spatext-sweep-report", folder)
        if not statuses or statuses - {OK, *CONTINUES}:
            raise SystemExit(1)
        if statuses != {OK}:
            raise SystemExit(EXIT_PREEMPTED)
