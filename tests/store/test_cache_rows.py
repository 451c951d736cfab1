"""What is recorded of files stays true, whatever was given up meanwhile."""

from __future__ import annotations

import sqlite3

from penstock.store import cache_rows as rows


def test_a_file_whose_entry_was_given_up_is_not_published_and_not_counted():
    """As after an interrupt: an entry without a key would be nobody's, and yet take room for good."""
    db = sqlite3.connect(":memory:")
    db.executescript(rows.KIND.schema)
    kept, given_up = rows.claim(db, [(b"kept", ".bin"), (b"given up", ".bin")], "me")
    rows.unclaim(db, [given_up], "me")
    files = [rows.Written(entry.id, 7, 0, None) for entry in (kept, given_up)]
    rows.publish(db, files, "boot")
    assert db.execute("SELECT files, bytes FROM total").fetchone() == (1, 7)
    assert [row.key for row in rows.candidates(db, [kept.id, given_up.id])] == [b"kept"]
    db.close()
