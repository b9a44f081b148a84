"""The time of a training loop, split into waiting for data and working."""

from dataclasses import dataclass


@dataclass
class Interval:
    """Some batches in a row, timed from the end of the batch before them."""

    seconds: float = 0.0
    waited: float = 0.0  # of these, for data
    num_batches: int = 0
    num_samples: int = 0

    @property
    def samples_per_second(self) -> float:
        return self.num_samples / self.seconds

    @property
    def wait_share(self) -> float:
        return self.waited / self.seconds


class Stopwatch:
    """Told when batches start and end, in seconds of any clock.

    The time between two batches is waiting. `interrupt` says that something else began in it, a
    validation or the writing of a checkpoint: from there to the next batch nothing is counted.
    Batches before the first `lap` are not counted.
    """

    def __init__(self) -> None:
        self.interval: Interval | None = None
        self.lap_time = 0.0  # start of the interval
        self.end_time: float | None = None  # of the last batch
        self.interrupt_time: float | None = None
        self.left_out = 0.0

    def batch_start(self, now: float) -> None:
        if self.interrupt_time is not None:
            self.left_out += now - self.interrupt_time
        elif self.interval is not None and self.end_time is not None:
            self.interval.waited += now - self.end_time
        self.interrupt_time = None

    def batch_end(self, now: float, num_samples: int) -> None:
        self.end_time = now
        if self.interval is not None:
            self.interval.num_batches += 1
            self.interval.num_samples += num_samples

    def interrupt(self, now: float) -> None:
        if self.interrupt_time is None:
            self.interrupt_time = now

    def lap(self, now: float) -> Interval | None:
        """The batches since the last lap, at the end of one; None at the first call."""
        done = self.interval
        if self.interrupt_time is not None:
            self.left_out += now - self.interrupt_time
            self.interrupt_time = now
        if done is not None:
            done.seconds = now - self.lap_time - self.left_out
        self.interval, self.lap_time, self.left_out = Interval(), now, 0.0
        return done
