"""Text: from tags, captions and music fields to prompts, or a reason why there are none."""
