"""The language model: architecture, delay pattern, losses, generation."""
