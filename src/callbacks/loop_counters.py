"""Lightning's counters of epochs and batches, as a resumed run has to find them."""

from typing import Any


def settle(counters: dict[str, Any], *, epoch_is_over: bool) -> None:
    """Correct, in place, the fit loop's state that was dumped at an optimizer step.

    Lightning counts a batch and an epoch only after the hooks in which checkpoints are written,
    and makes up for it on a resume. It does so rightly after a batch within an epoch. To this form
    others are brought: after a validation, or when the run is over, where an epoch that was cut
    short counts as whole and a step is counted for the loggers twice. After the last batch of an
    epoch Lightning does not count the next one as begun, so that a second resume goes wrong: here
    the epoch is over by then.
    """
    batches, epochs = counters["epoch_loop.batch_progress"], counters["epoch_progress"]
    if epochs["current"]["processed"] == epochs["current"]["ready"]:  # the run is over
        counters["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
        for progress in (epochs["total"], epochs["current"]):
            progress["processed"] = progress["completed"] = progress["ready"] - 1
    for progress in (batches["total"], batches["current"]):
        progress["completed"] = progress["ready"] - 1
    if epoch_is_over:
        for progress in (epochs["total"], epochs["current"]):
            progress |= dict.fromkeys(progress, progress["ready"])
        batches["is_last_batch"] = False
