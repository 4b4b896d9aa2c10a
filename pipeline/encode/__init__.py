"""From a frozen plan to committed shards on Ray: embed prompts, encode audio, finalize."""
