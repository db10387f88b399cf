"""What a training run leaves behind: its scores by epoch, and the exception that ends a bad one."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Score(NamedTuple):
    """Mean cross-entropy in nats and the fraction of images classified correctly."""

    loss: float
    accuracy: float


@dataclass
class History:
    """One entry an epoch: loss (nats) and accuracy (0 to 1) while training, the same on the test
    images if there are any, and wall seconds. Test scores that began late are those of the last
    epochs. `interrupted` is True after Ctrl-C. `mixed_precision` and `channels_last`: how it was
    computed, None before the first step."""

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    interrupted: bool = False
    mixed_precision: bool | None = None
    channels_last: bool | None = None


class TrainingDiverged(RuntimeError):
    """The loss became infinite or NaN; `history` holds the epochs before."""

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message, history)  # both, so that it survives pickling
        self.history = history

    def __str__(self) -> str:
        return self.args[0]
