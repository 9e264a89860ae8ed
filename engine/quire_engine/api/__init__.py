"""The API process: HTTP, templates, tokens to text. It imports neither torch nor transformers."""
