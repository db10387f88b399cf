"""The ledger: every claim the course settles, its verdict, and the chapter that shows it."""

import json

from d2lres._assets import asset


def claims() -> list[dict[str, str]]:
    """The rows of the ledger: id, claim, verdict, chapter, evidence."""
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
