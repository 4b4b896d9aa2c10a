"""The folder of a training run: its files, log, status, signals and precision."""
