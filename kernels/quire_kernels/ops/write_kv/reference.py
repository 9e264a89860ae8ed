"""The torch reference of `write_kv`."""

import torch


def write_kv(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """cache[slot] = row for key and value [T, Hkv, D]; slot -1 skips its row."""
    kept = slot_mapping >= 0
    slots = slot_mapping[kept]
    for rows, cache in ((key, key_cache), (value, value_cache)):
        cache.view(-1, *cache.shape[2:])[slots] = rows[kept].to(cache.dtype)
