"""What ships beside the code: files, records, the ledger of claims."""

import pytest

from d2lres import records
from d2lres.records import asset, claims, ledger, recorded


def test_a_file_is_found_in_the_wheel_or_in_the_clone_or_named(monkeypatch, tmp_path):
    assert recorded("degradation")["experiment"] == "degradation"
    with pytest.raises(FileNotFoundError, match="assets/results/gravity.json: install it again"):
        recorded("gravity")
    monkeypatch.setattr(records, "__file__", str(tmp_path / "d2lres" / "records.py"))
    for folder in (tmp_path / "assets", tmp_path / "d2lres/assets"):  # the wheel's own wins
        folder.mkdir(parents=True)
        (folder / "x.json").touch()
        assert asset("x.json") == (folder / "x.json").resolve()


@pytest.mark.parametrize("part", ["N", "F", "T"])
def test_the_ledger_shows_every_claim_with_its_verdict_and_its_chapter(part):
    head, _, *rows = ledger(part).splitlines()
    assert head == "| claim | verdict | chapter | evidence |" and len(rows) == len(claims(part))
    for claim, row in zip(claims(part), rows):
        said = f" ({claim['said']})" if part in "FT" else ""
        assert row.startswith(f"| **{claim['id']}** {claim['claim']}{said} | {claim['verdict']} | ")
        assert f"[{claim['chapter'][:2]}]({claim['chapter']}.ipynb)" in row
        assert row.endswith(f" | {claim['evidence']} |")
