"""The torch reference of `argmax`."""

import torch


def argmax(x: torch.Tensor) -> torch.Tensor:
    """Index [T] int64 of each row's maximum of x [T, N], the lowest of equals; -1 where a value is
    NaN or the maximum infinite."""
    peaks = x.amax(-1, keepdim=True)  # NaN where any value is
    found = (x == peaks).to(torch.uint8).argmax(-1)
    return torch.where(peaks[:, 0].isfinite(), found, -1)
