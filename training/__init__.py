"""Training the codec and the language model, sampling, and judging what comes out."""
