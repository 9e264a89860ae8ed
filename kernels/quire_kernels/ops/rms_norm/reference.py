"""The torch reference of `rms_norm` and `add_rms_norm`; sums in fp32."""

import torch


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x [..., H] / sqrt(mean(x²) + eps) * weight [H]."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    result = (wide * scale * weight.float()).to(x.dtype)
    return result if out is None else out.copy_(result)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    in_place: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual), both [T, H]; in_place: written over the two."""
    total = residual.add_(x) if in_place else x + residual
    return rms_norm(total, weight, eps, out=x if in_place else None), total
