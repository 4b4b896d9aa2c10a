"""The answers of a study: one row per rater and pair; flushed to disk before it is confirmed."""

from __future__ import annotations

import sqlite3
import threading
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from common.errors import AttuneError
from training.evaluation.preference.study import Side, Study

_SCHEMA = """
CREATE TABLE IF NOT EXISTS study (id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS answers (
    rater INTEGER NOT NULL,
    pair INTEGER NOT NULL,
    choice TEXT NOT NULL CHECK (choice IN ('left', 'right')),
    comment TEXT NOT NULL,
    answered_at TEXT NOT NULL,
    PRIMARY KEY (rater, pair)
) STRICT;
"""
_BUSY_S = 10.0


@dataclass(frozen=True)
class Answer:
    """The answer of a rater for a pair."""

    rater: int
    """Index in the study's list, from 0."""
    pair: int
    choice: Side
    comment: str
    answered_at: str
    """UTC, ISO 8601."""


class Conflict(Exception):
    """A different answer for this pair is already stored."""


class Answers:
    """The database of a study's folder; several threads and processes may use it."""

    def __init__(self, folder: Path, study: Study) -> None:
        """Open or create the database.

        Raises:
            AttuneError: it cannot be opened, or belongs to another study.
        """
        self._lock = threading.Lock()
        path = folder / "answers.sqlite"
        try:
            # Autocommit: each statement is a transaction.
            self._database = sqlite3.connect(
                path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            # A commit returns after the write-ahead log is flushed to disk.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)
            self._database.execute(
                "INSERT INTO study SELECT ? WHERE NOT EXISTS (SELECT 1 FROM study)", (study.id,)
            )
            (found,) = self._database.execute("SELECT id FROM study").fetchone()
        except sqlite3.Error as error:
            raise AttuneError(f"{path}: {error}") from error
        if found != study.id:
            self.close()
            raise AttuneError(f"{path}: has the answers of another study than study.json")

    def add(self, rater: int, pair: int, choice: Side, comment: str) -> bool:
        """Store an answer; it is on disk when this returns.

        Returns:
            False if the same answer was already stored.

        Raises:
            Conflict: a different answer was already stored.
        """
        comment = plain_text(comment)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._lock:
            added = self._database.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (rater, pair, choice, comment, now),
            ).rowcount
            if added:
                return True
            stored = self._database.execute(
                "SELECT choice, comment FROM answers WHERE rater = ? AND pair = ?", (rater, pair)
            ).fetchone()
        if stored != (choice, comment):
            raise Conflict
        return False

    def answered(self, rater: int) -> set[int]:
        """Pairs that a rater has answered."""
        with self._lock:
            rows = self._database.execute("SELECT pair FROM answers WHERE rater = ?", (rater,))
            return {pair for (pair,) in rows}

    def all(self) -> list[Answer]:
        """All answers, sorted by rater and pair."""
        with self._lock:
            rows = self._database.execute(
                "SELECT rater, pair, choice, comment, answered_at FROM answers ORDER BY rater, pair"
            )
            return [Answer(*row) for row in rows]

    def close(self) -> None:
        with self._lock:
            self._database.close()


def plain_text(text: str) -> str:
    """Remove control characters (except newlines and tabs) and surrounding space."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    kept = (c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
    return "".join(kept).strip()
