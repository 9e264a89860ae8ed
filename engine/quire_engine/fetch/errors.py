"""Why a fetch failed. The class's `reason` is the one in the termination message and in status.

FetchFailed (10)
├── SourceUnauthorized   the source knows us not, or not for this model
├── SourceNotFound       no such model, revision or file there (or none that we may know of)
├── SourceUnreachable    no answer, or server errors, through all attempts
├── NoSpace              the volume is, or would be, full
├── Stalled              the source sent no byte for too long
├── Corrupt              what came, or what lies on the volume, is not what the source lists
│   └── SourceChanged    the source's files changed or went while they were fetched (reason Corrupt)
├── UnsupportedSource    whole, but nothing that the engine can load (reason UnsupportedModel)
└── FetchInternal        the volume cannot be written, or a fault of ours (reason Internal)
"""

from quire_engine.errors import FetchFailed


class SourceUnauthorized(FetchFailed):
    """401 or 403, or a gated model without access."""

    reason = "SourceUnauthorized"


class SourceNotFound(FetchFailed):
    """No such repository, revision or file."""

    reason = "SourceNotFound"


class SourceUnreachable(FetchFailed):
    """The source could not be talked to, again and again."""

    reason = "SourceUnreachable"


class NoSpace(FetchFailed):
    """The volume has too few free bytes."""

    reason = "NoSpace"


class Stalled(FetchFailed):
    """Connected, but no byte came for the time allowed."""

    reason = "Stalled"


class Corrupt(FetchFailed):
    """Contents, lengths or names that cannot be right."""

    reason = "Corrupt"


class SourceChanged(Corrupt):
    """What was listed is not there any more; listing anew may help, mixing the two never does."""


class UnsupportedSource(FetchFailed):
    """The repository has no files that the engine can serve from."""

    reason = "UnsupportedModel"


class FetchInternal(FetchFailed):
    """The volume or this program is at fault, not the source."""

    reason = "Internal"


def of_adapter(error: FetchFailed, place: str) -> FetchFailed:
    """The same failure, told of the LoRA adapter at `place`, with its fields in the way out."""
    words = str(error)
    for field in ("model.uri", "model.revision"):
        words = words.replace(field, field.replace("model.", "model.adapters[]."))
    return type(error)(f"adapter {place}: {words}")
