"""The inference engine and its OpenAI-compatible server."""
