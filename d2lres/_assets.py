"""Where the files that come with the course are: inside the wheel, or in the repository."""

from pathlib import Path


def asset(name: str) -> Path:
    """Path of `assets/<name>`, installed or in a clone. Raises FileNotFoundError if it is absent."""
    here = Path(__file__).resolve().parent
    for folder in (here / "assets", here.parent / "assets"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"d2lres came without its file assets/{name}: install it again.")
