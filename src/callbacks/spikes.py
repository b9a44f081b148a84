"""Losses that stand out from those before them."""

from collections import deque
from statistics import median


class SpikeDetector:
    """A loss above median + factor * MAD of the last `window` is a spike.

    MAD is the median absolute deviation from the median, so past spikes and the slope of a falling
    loss hardly move the bound. Nothing is a spike before `warmup` losses, nor among losses that are
    all alike. Spikes do not enter the window. The defaults are our choice.
    """

    def __init__(self, window: int = 200, factor: float = 20.0, warmup: int = 1000) -> None:
        if window < 2 or factor <= 0 or warmup < 0:
            raise ValueError(
                f"callbacks.finite.spike: found window={window} factor={factor} warmup={warmup}, "
                "expected window >= 2, factor > 0 and warmup >= 0"
            )
        self.factor, self.warmup = factor, warmup
        self.num_seen = 0
        self.losses: deque[float] = deque(maxlen=window)

    def bound(self) -> float:
        """Infinite as long as nothing can be said."""
        if self.num_seen < self.warmup or len(self.losses) < 2:
            return float("inf")
        middle = median(self.losses)
        deviation = median(abs(loss - middle) for loss in self.losses)
        return middle + self.factor * deviation if deviation > 0 else float("inf")

    def add(self, loss: float) -> None:
        self.losses.append(loss)
        self.num_seen += 1

    def state_dict(self) -> dict[str, int | list[float]]:
        return {"num_seen": self.num_seen, "losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, int | list[float]]) -> None:
        num_seen, losses = state["num_seen"], state["losses"]
        assert isinstance(num_seen, int)
        assert isinstance(losses, list)
        self.num_seen = num_seen
        self.losses = deque(losses, maxlen=self.losses.maxlen)
