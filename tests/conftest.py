import signal

import pytest
import torch

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a job in the background starts deaf
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _same_start(monkeypatch):
    """The same random numbers in every test, whatever ran before it, and no window for a figure."""
    torch.manual_seed(0)
    monkeypatch.setenv("MPLBACKEND", "agg")
