"""The model as the API process knows it: its tokenizer, its chat template, what the core says it
can take.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quire_engine.api.chat_template import ChatTemplate
from quire_engine.api.errors import InvalidRequest
from quire_engine.api.protocol import ChatMessage
from quire_engine.api.sampling import ModelLimits
from quire_engine.api.tokenizer import Tokenizer
from quire_engine.messages import CoreReady

LONG_TEXT_CHARS = 8192
"""Longer texts are tokenized in a thread: about 2 ms, which other streams would wait for."""


@dataclass(frozen=True)
class ServedModel:
    """Complete once the core is ready."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    limits: ModelLimits

    @staticmethod
    def of(tokenizer: Tokenizer, core: CoreReady) -> "ServedModel":
        """Put together what was read here and what the core reports. ModelCorrupt for a bad
        template.
        """
        source = tokenizer.special.chat_template
        template = None if source is None else ChatTemplate(source, tokenizer.special.by_name)
        # A tokenizer may know more tokens than the model can say; the core refuses their ids.
        ends = frozenset(end for end in tokenizer.special.eos_token_ids if end < core.vocab_size)
        limits = ModelLimits(core.max_model_len, core.vocab_size, ends)
        return ServedModel(tokenizer, template, limits)

    async def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Token ids of `text`."""
        if len(text) <= LONG_TEXT_CHARS:
            return tuple(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))
        return tuple(
            await asyncio.to_thread(
                self.tokenizer.encode, text, add_special_tokens=add_special_tokens
            )
        )

    async def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool | None,
        add_special_tokens: bool | None,
        variables: dict[str, Any] | None,
    ) -> tuple[int, ...]:
        """Token ids of a conversation. The template writes special tokens itself, so none are
        added.
        """
        if self.template is None:
            raise InvalidRequest(
                "a chat needs a chat template, this model has none; use /v1/completions, or put a "
                "chat_template.jinja into the model folder",
                code="no_chat_template",
            )
        text = self.template.render(
            messages,
            add_generation_prompt=True if add_generation_prompt is None else add_generation_prompt,
            variables=variables,
        )
        return await self.encode(text, add_special_tokens=bool(add_special_tokens))
