"""The torch reference of `rope`."""

import torch


def rope(
    query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor
) -> None:
    """Rotate query [T, Hq, D] and key [T, Hkv, D] in place by cos_sin[positions], cos | sin."""
    cos, sin = cos_sin[positions].float().unsqueeze(1).chunk(2, dim=-1)
    for heads in (query, key):
        first, second = heads.float().chunk(2, dim=-1)
        heads.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))
