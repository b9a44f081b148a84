"""A trial that takes no time: `python -m cheap_trial` with the overrides of spatext-train.

`name=FATE` says how it is to end. seen.json in its folder tells what it was given.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VARIABLES = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_NTASKS", "SLURM_JOB_ID", "NAME")


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    folder, fate = Path(given["hydra.run.dir"].strip("'")), given["name"]
    seen: dict[str, Any] = {"argv": sys.argv[1:], "pid": os.getpid()}
    seen["env"] = {name: os.environ.get(name) for name in (*VARIABLES, "CUDA_VISIBLE_DEVICES")}
    if fate == "orphan":
        orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        seen["orphan"] = orphan.pid
    (folder / "seen.json").write_text(json.dumps(seen))
    print("loading", flush=True)
    end(folder, fate)


def end(folder: Path, fate: str) -> None:
    if fate == "kill":
        print("RuntimeError: last words\nand more", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "save":  # when told to stop
        signal.signal(signal.SIGTERM, lambda *_: leave(folder))
        (folder / "ready").touch()
        time.sleep(300)
    if fate == "orphan":
        raise RuntimeError("gone without it")
    if fate.startswith("exit"):
        raise SystemExit(int(fate.removeprefix("exit")))
    result = {"status": "ok", "objective": 0.5, "metrics": {"loss": 0.5}}
    (folder / "result.json").write_text(json.dumps(result))


def leave(folder: Path) -> None:
    (folder / "saved").touch()
    raise SystemExit(75)


if __name__ == "__main__":
    main()
