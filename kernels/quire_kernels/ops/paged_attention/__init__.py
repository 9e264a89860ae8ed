"""Causal attention over a paged key-value cache, prefill chunks and decodes in one call."""
