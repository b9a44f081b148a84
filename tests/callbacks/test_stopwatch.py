"""Times told by hand."""

import pytest

from spatext.callbacks.stopwatch import Stopwatch


def test_the_time_between_batches_is_waiting() -> None:
    watch = Stopwatch()
    watch.batch_start(0.0)
    watch.batch_end(50.0, 4)  # compilation
    assert watch.lap(50.0) is None
    for start, end in ((51.0, 53.0), (53.5, 55.0)):
        watch.batch_start(start)
        watch.batch_end(end, 4)
    interval = watch.lap(56.0)  # one second until the device was ready
    assert interval is not None
    assert (interval.seconds, interval.waited) == (6.0, 1.5)
    assert (interval.num_batches, interval.num_samples) == (2, 8)
    assert interval.samples_per_second == pytest.approx(8 / 6)
    assert interval.wait_share == 0.25
    watch.batch_start(57.0)
    watch.batch_end(60.0, 4)
    interval = watch.lap(60.0)
    assert interval is not None
    assert (interval.seconds, interval.waited, interval.num_samples) == (4.0, 2.0, 4)


def test_an_interruption_is_left_out() -> None:
    """From where it began to the next batch, whichever lap that is in."""
    watch = Stopwatch()
    watch.batch_end(0.0, 1)
    watch.lap(0.0)
    watch.batch_start(1.0)
    watch.batch_end(3.0, 1)
    watch.interrupt(4.0)  # validation
    watch.interrupt(90.0)  # and a checkpoint in it
    watch.batch_start(104.0)
    watch.batch_end(106.0, 1)
    interval = watch.lap(106.0)
    assert interval is not None
    assert (interval.seconds, interval.waited) == (6.0, 1.0)
    # A checkpoint at the end of a batch, before the lap.
    watch.batch_start(107.0)
    watch.interrupt(109.0)
    watch.batch_end(119.0, 1)
    interval = watch.lap(119.0)
    assert interval is not None
    assert (interval.seconds, interval.waited) == (3.0, 1.0)
    watch.batch_start(121.0)
    watch.batch_end(122.0, 1)
    interval = watch.lap(122.0)
    assert interval is not None
    assert (interval.seconds, interval.waited) == (1.0, 0.0)
