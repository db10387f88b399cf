import os

import pytest
import torch

os.environ["D2LRES_PROGRESS"] = "0"


@pytest.fixture(autouse=True)
def _same_start(monkeypatch):
    """The same random numbers in every test, whatever ran before it, and no window for a figure."""
    torch.manual_seed(0)
    monkeypatch.setenv("MPLBACKEND", "agg")
