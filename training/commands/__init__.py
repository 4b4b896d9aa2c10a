"""What `python -m training` does, a room per kind of command."""
