"""Causal attention of new queries over a paged key-value cache, prefill chunks and decodes in one call."""
