"""How a run ends, as the exit code of its processes.

| code | the run                                                      | what to do                |
|------|--------------------------------------------------------------|---------------------------|
| 0    | finished                                                     |                           |
| 1    | met a mistake of the user's (one line) or ours (a traceback) | correct it                |
| 75   | was asked to stop, and saved first (EX_TEMPFAIL)             | same command, resume=true |
| 76   | gave up on numbers that are not finite                       | look at data and settings |
| 77   | hung: the stacks of all threads are in its logs              | same command, resume=true |
| 130  | was interrupted in the terminal, and did not save            | same command, resume=true |

torchrun reports 1 for all but the first. A signal that comes while Python still imports has its
own effect (143 for SIGTERM): nothing has begun.
"""

EXIT_PREEMPTED = 75
EXIT_GAVE_UP = 76
EXIT_HUNG = 77
EXIT_INTERRUPTED = 130


class Stop(SystemExit):
    """Leaves the fit and, where nobody catches it, ends the process with `exit_code`."""

    exit_code = 1
    status = "failed"

    def __init__(self, reason: str) -> None:
        super().__init__(self.exit_code)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class Preempted(Stop):
    """Asked to stop from outside; what was trained is saved."""

    exit_code = EXIT_PREEMPTED
    status = "preempted"


class Hung(Stop):
    """Another rank's watchdog has ended that rank; its own exit goes around all of Python's."""

    exit_code = EXIT_HUNG
    status = "hung"


class Interrupted(Stop):
    """By Ctrl-C: whoever presses it does not want to wait for a checkpoint."""

    exit_code = EXIT_INTERRUPTED
    status = "preempted"


class GaveUp(Stop):
    """Losses or gradients are not finite, and going on or back did not help."""

    exit_code = EXIT_GAVE_UP
    status = "gave_up"
