"""The gated activation of Llama's MLP (SwiGLU, Shazeer 2020, arXiv:2002.05202)."""
