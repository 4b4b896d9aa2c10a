"""Weights that travel: to and from Hugging Face, and from audiocraft."""
