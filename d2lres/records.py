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


def claims(part: str = "N") -> list[dict[str, str]]:
    """The claims the course settles: "id", "claim", "verdict", "chapter", "evidence" of each.

    part: "N", what the notes say, "F", what the field says of ResNets, or "T", of transfer; those two
        have "said", where, as well.
    """
    rows = json.loads(asset("claims.json").read_text(encoding="utf-8"))
    return [row for row in rows if row["id"][0] == part]


def ledger(part: str = "N") -> str:
    """The claims of a part as a table in Markdown, in the order of their numbers."""
    rows = ["| claim | verdict | chapter | evidence |", "|---|---|---|---|"]
    for row in claims(part):
        said = f" ({row['said']})" if "said" in row else ""
        link = f"[{row['chapter'][:2]}]({row['chapter']}.ipynb)"
        cells = f"**{row['id']}** {row['claim']}{said}", row["verdict"], link, row["evidence"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
