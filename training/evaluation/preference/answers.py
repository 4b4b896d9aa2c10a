"""Answers of a study: one row per rater and pair, on the disk before anyone is told so."""

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
    """What one rater said of one pair."""

    rater: int
    """Number in the study's list, from 0."""
    pair: int
    choice: Side
    comment: str
    answered_at: str
    """UTC, ISO 8601."""


class Conflict(Exception):
    """Another answer to this pair is there already, and stands."""


class Answers:
    """The database of a study's folder; may be used by several threads and processes."""

    def __init__(self, folder: Path, study: Study) -> None:
        """Open it, or make it.

        Raises:
            AttuneError: it cannot be opened, or belongs to another study.
        """
        self._lock = threading.Lock()
        self._path = folder / "answers.sqlite"
        try:
            self._open(study.id)
        except sqlite3.Error as error:
            raise AttuneError(f"{self._path}: {error}") from error

    def _open(self, study_id: str) -> None:
        # Autocommit: transactions begin and end where this file says so.
        self._database = sqlite3.connect(
            self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        # A commit in the write-ahead log is flushed to the disk before it returns.
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_SCHEMA)
        self._database.execute(
            "INSERT INTO study SELECT ? WHERE NOT EXISTS (SELECT 1 FROM study)", (study_id,)
        )
        (found,) = self._database.execute("SELECT id FROM study").fetchone()
        if found != study_id:
            self._database.close()
            raise AttuneError(f"{self._path}: holds the answers of another study than study.json")

    def add(self, rater: int, pair: int, choice: Side, comment: str) -> bool:
        """Store an answer; when this returns, it is on the disk.

        Returns:
            False if the very same answer was there already.

        Raises:
            Conflict: another one was.
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
        """Every answer, by rater and pair."""
        with self._lock:
            rows = self._database.execute(
                "SELECT rater, pair, choice, comment, answered_at FROM answers ORDER BY rater, pair"
            )
            return [Answer(*row) for row in rows]

    def close(self) -> None:
        with self._lock:
            self._database.close()


def plain_text(text: str) -> str:
    """A comment without control characters (lines and tabs stay) and space around it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    kept = (c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
    return "".join(kept).strip()
