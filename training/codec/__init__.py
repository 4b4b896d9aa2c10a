"""Training EnCodec: generator, residual vector quantizer, losses, loop."""
