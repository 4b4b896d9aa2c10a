"""Judging generated audio."""
