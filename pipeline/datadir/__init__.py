"""The data folder on a disk or in a bucket: frozen plan, text cache, commits."""
