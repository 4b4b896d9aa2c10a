"""FAD, KL, CLAP score and the metrics that need no download."""
