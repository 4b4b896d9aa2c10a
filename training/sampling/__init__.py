"""From prompts to audio: draw codes, decode them, write clips."""
