"""Checkpoints of a training run: save, resume, load for inference."""
