"""What the course ships beside its code: files, records of long experiments, the ledger of claims."""

import json
from pathlib import Path


def asset(name: str) -> Path:
    """Path of `assets/<name>`, in the wheel or in a clone. Raises FileNotFoundError without it."""
    here = Path(__file__).resolve().parent
    for folder in (here / "assets", here.parent / "assets"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"d2lres came without its file assets/{name}: install it again.")


def recorded(name: str) -> dict:
    """The record of experiment `name`, or the one named "benchmarks".

    Its entries: "experiment", "config" and "config_hash", "seconds" of wall time, "runs", "versions",
    "machine" and "date". Raises FileNotFoundError if the course ships no such record.
    """
    return json.loads(asset(f"results/{name}.json").read_text(encoding="utf-8"))


def claims() -> list[dict[str, str]]:
    """The claims the course settles: "id", "claim", "verdict", "chapter", "evidence" of each."""
    return json.loads(asset("claims.json").read_text(encoding="utf-8"))


def ledger() -> str:
    """The claims as a table in Markdown, in the order of their numbers."""
    rows = ["| claim | verdict | chapter | evidence |", "|---|---|---|---|"]
    for row in claims():
        chapter = f"[{row['chapter'][:2]}]({row['chapter']}.ipynb)"
        rows.append(
            f"| **{row['id']}** {row['claim']} | {row['verdict']} | {chapter} | {row['evidence']} |"
        )
    return "\n".join(rows)
