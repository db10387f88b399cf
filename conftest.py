"""For every test and every kernel that nbval starts: no progress bars in the outputs."""

import os

os.environ["D2LRES_PROGRESS"] = "0"
