"""Local web pages: play a model, and what all servers share."""
