"""Models that turn audio into embeddings, each behind one small protocol."""
