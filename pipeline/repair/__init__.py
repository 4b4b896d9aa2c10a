"""Change a data folder on request: retry refused clips, collect garbage."""
