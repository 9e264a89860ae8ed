"""Where recorded and captured decode steps find their inputs: memory that stays where it is."""

import torch

from quire_engine.models.decoder import StepInputs


class StaticInputs:
    """A step of one token from each of so many sequences. Those of fewer are its first rows."""

    def __init__(self, max_seqs: int, max_blocks: int, device: torch.device) -> None:
        """`max_blocks` of a sequence: tables have a context's width, so that growing ones change
        nothing."""
        self.max_seqs = max_seqs
        self._max_blocks = max_blocks
        self._all = StepInputs(
            token_ids=torch.zeros(max_seqs, dtype=torch.int64, device=device),
            positions=torch.zeros(max_seqs, dtype=torch.int64, device=device),
            slot_mapping=torch.zeros(max_seqs, dtype=torch.int64, device=device),
            query_start_loc=torch.arange(max_seqs + 1, dtype=torch.int32, device=device),
            seq_lens=torch.zeros(max_seqs, dtype=torch.int32, device=device),
            block_tables=torch.zeros(max_seqs, max_blocks, dtype=torch.int32, device=device),
            logits_rows=torch.arange(max_seqs, device=device),
        )

    def take(self, inputs: StepInputs) -> bool:
        """Whether `inputs` are plain decodes that find room: one token each, all sampled from."""
        num_seqs, max_blocks = inputs.block_tables.shape
        return (
            len(inputs.token_ids) == len(inputs.logits_rows) == num_seqs <= self.max_seqs
            and max_blocks <= self._max_blocks
            and not inputs.adapters
        )

    def fill(self, inputs: StepInputs, num_rows: int | None = None) -> StepInputs:
        """`inputs`, which these take, here. Up to `num_rows` follows padding: rows that write
        nowhere and read the first key of block 0, so that their logits are of no use."""
        num_seqs, max_blocks = inputs.block_tables.shape
        own = self._rows(num_seqs if num_rows is None else num_rows)
        for name in ("token_ids", "positions", "slot_mapping", "seq_lens"):
            getattr(own, name)[:num_seqs].copy_(getattr(inputs, name), non_blocking=True)
        own.block_tables[:num_seqs, :max_blocks].copy_(inputs.block_tables, non_blocking=True)
        own.block_tables[:num_seqs, max_blocks:] = -1  # no block: what goes beyond is refused
        self._pad(own, num_seqs)
        return own

    def padding(self, num_rows: int) -> StepInputs:
        """A step of nothing else, for warming up."""
        own = self._rows(num_rows)
        self._pad(own, 0)
        return own

    def _rows(self, num_rows: int) -> StepInputs:
        return StepInputs(
            token_ids=self._all.token_ids[:num_rows],
            positions=self._all.positions[:num_rows],
            slot_mapping=self._all.slot_mapping[:num_rows],
            query_start_loc=self._all.query_start_loc[: num_rows + 1],
            seq_lens=self._all.seq_lens[:num_rows],
            block_tables=self._all.block_tables[:num_rows],
            logits_rows=self._all.logits_rows[:num_rows],
        )

    def _pad(self, own: StepInputs, begin: int) -> None:
        if begin == len(own.seq_lens):
            return
        own.token_ids[begin:] = own.positions[begin:] = 0
        own.slot_mapping[begin:] = -1
        own.seq_lens[begin:] = 1
        own.block_tables[begin:, 0] = 0
