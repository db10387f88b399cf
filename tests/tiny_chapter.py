"""A chapter with one of everything: claim, picture, error, needed cell, three exercises."""

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
ALT = "one pixel, which says nothing at all"
SHOW = f"""\
from IPython.display import display
display({{"image/png": "{PIXEL}", "text/plain": "a pixel"}}, raw=True,
        metadata={{"image/png": {{"alt": "{ALT}"}}}})"""

CHECKS = """\
from d2lres.checks import check, compare


@check
def double(answer) -> str:
    compare(answer, lambda x: 2 * x, [(3,), (-1.5,)], form="one number")
    return "twice three is six."
"""

NEXT_CELL = "\n# %% [markdown]\n# "
EXERCISE = '''\
### Exercise {n} (easy, 2 minutes): double it
# Return twice `x`.
# <details><summary>Hint</summary>Multiply.</details>

# %%
def double(x):
    """Twice `x`."""
    ### BEGIN SOLUTION
    return times(2, x)
    ### END SOLUTION

check.double(double)
'''


def chapter(checks: str, claim: str) -> str:
    """The source of the chapter. checks: code after which `check.double` exists."""
    return f"""# %% [markdown]
# # A tiny chapter
# It promises little.
#
# **You can afterwards** double a *number*.
#
# **Minutes**: 5, all of them for the exercises.

# %% tags=["setup"]

# %% tags=["needed"]
{checks}
def times(a, b):
    return a * b

# %% [markdown]
# ## A measured number
# **Predict** it.

# %% tags=["nbval-ignore-output", "reason: the clock is never the same twice", "claim:{claim}"]
import time
print(time.perf_counter())
assert time.perf_counter() > 0

# %%
{SHOW}

# %% tags=["raises-exception"]
import torch
torch.ones(2) + torch.ones(3)

# %% [markdown]
# The end of a section.
#
# ## Exercises
# Replace the `...` by your answer and run the cell.
#
# {NEXT_CELL.join(EXERCISE.format(n=n) for n in (1, 2, 3))}
# %% [markdown]
# ## Summary
# - Two times three is six.
"""
