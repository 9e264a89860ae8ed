"""`spec.model` and `spec.cache`: which model, and where its files are kept."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from quire_operator.api.parts import Part, QuantityField, Rule, validations

_URI_HELP = (
    "model.uri must be hf://org/name[/file.gguf], s3://, gs:// or az://bucket[/prefix][/file.gguf],"
    " https://host/path of a .gguf or .tar file, or pvc://claim/path"
)
URI_RULE = Rule(
    "self.matches('^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(/[^/ ]+)*$')"
    " || self.matches('^(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*(/[^/ ]+)*/?$')"
    " || self.matches('^https://[^/@?# ]+(/[^/?# ]+)+[.](gguf|tar)$')"
    " || self.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^/ ]+)*/?$')",
    _URI_HELP,
    f"'{_URI_HELP}, got ' + self",
)


_ADAPTER_URI_HELP = (
    "model.adapters[].uri must be hf://org/name, s3://, gs:// or az://bucket[/prefix], https://host"
    "/path of a .tar file, or pvc://claim/path"
)
ADAPTER_URI_RULE = Rule(
    "self.matches('^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$')"
    " || (self.matches('^(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*(/[^/ #]+)*/?$')"
    " && !self.endsWith('.gguf'))"
    " || self.matches('^https://[^/@?# ]+(/[^/?# ]+)+[.]tar$')"
    " || self.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^/ ]+)+/?$')",
    _ADAPTER_URI_HELP,
    f"'{_ADAPTER_URI_HELP}, got ' + self",
)


class Adapter(Part, frozen=True):
    """A LoRA adapter, served beside the model under a name of its own."""

    rules = (
        Rule(
            "!self.uri.startsWith('pvc://') || !has(self.revision)",
            "model.adapters[].revision has no meaning for pvc://, served as its files lie; "
            "remove it",
        ),
    )

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=63,
            pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
            description="The `model` name that OpenAI clients send for it: a-z, 0-9, '-' and '.', "
            "at most 63 characters, and no other model's of this service.",
        ),
    ]
    uri: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=512,
            description="Where the adapter lies, in PEFT's format (adapter_config.json and "
            "adapter_model.safetensors): as model.uri, but a folder, no file. It is fetched to "
            "the model's claim with the model's credentials; one on a claim (`pvc://`) is served "
            "as it lies.",
            extra_json_schema={"x-kubernetes-validations": validations((ADAPTER_URI_RULE,))},
        ),
    ]
    revision: Annotated[
        Annotated[str, Meta(min_length=1, max_length=128, pattern="^[^# ]+$")] | None,
        Meta(
            description="Branch, tag or commit. Default: the main branch. An adapter that lies "
            "on the claim already is kept, wherever a branch has moved since."
        ),
    ] = None


class Model(Part, frozen=True):
    """Which model is served, and under what name."""

    rules = (
        Rule(
            "!self.uri.startsWith('pvc://') || !has(self.revision)",
            "model.revision has no meaning for pvc://, served as its files lie; remove it",
        ),
        Rule(
            "!self.uri.startsWith('pvc://') || !has(self.credentialsSecret)",
            "model.credentialsSecret has no meaning for pvc://, never downloaded; remove it",
        ),
        Rule(
            "!self.uri.startsWith('pvc://') || !has(self.adapters)"
            " || self.adapters.all(a, a.uri.startsWith('pvc://'))",
            "model.adapters[].uri must be pvc:// where model.uri is: nothing is fetched for such a"
            " model",
        ),
        Rule(
            "!has(self.servedName) || !has(self.adapters)"
            " || self.adapters.all(a, a.name != self.servedName)",
            "model.adapters[].name must not be model.servedName, by which the model itself answers",
        ),
    )

    uri: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=512,
            description="Where the model lies: `hf://org/name` (a repository of safetensors on "
            "a Hugging Face hub or its mirror), `s3://bucket/prefix`, `gs://bucket/prefix` or "
            "`az://container/prefix` (safetensors right below a prefix of an object store), a "
            "`/file.gguf` below one of these (one file of it), `https://host/path` (a .gguf file, "
            "or a .tar of a folder of safetensors) or `pvc://claim/path` (files on a claim of this "
            "namespace, served as they lie). A change makes a new revision.",
            extra_json_schema={"x-kubernetes-validations": validations((URI_RULE,))},
        ),
    ]
    revision: Annotated[
        Annotated[str, Meta(min_length=1, max_length=128)] | None,
        Meta(
            description="Branch, tag or commit of the repository. Default: the repository's "
            "main branch. It is resolved to a commit once, when it is fetched "
            "(status.model.commit), and moves only when the spec changes. Object "
            "stores and https:// have one, a hash of what lies there: when it is given "
            "here and is not that any more, the fetch fails.",
        ),
    ] = None
    served_name: Annotated[
        Annotated[str, Meta(min_length=1, max_length=256)] | None,
        Meta(
            description="The `model` name that OpenAI clients send. Default: metadata.name.",
        ),
    ] = None
    credentials_secret: Annotated[
        Annotated[str, Meta(min_length=1, max_length=253)] | None,
        Meta(
            description="Name of a Secret of this namespace. Its keys: for hf:// `token`; for "
            "https:// `token`, or `username` and `password`; for object stores what "
            "their own tools read from the environment: `AWS_ACCESS_KEY_ID`, "
            "`AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`; "
            "`GOOGLE_SERVICE_ACCOUNT_KEY` (the JSON itself), `GOOGLE_BASE_URL`; "
            "`AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY` or "
            "`AZURE_STORAGE_SAS_TOKEN`, `AZURE_STORAGE_ENDPOINT`. They reach the Jobs that plan "
            "and fetch, never the pods that serve; so it cannot be used with cache.mode none, "
            "where those fetch. Without it buckets are asked as a stranger.",
        ),
    ] = None
    adapters: Annotated[
        list[Adapter],
        Meta(
            max_length=16,
            description="LoRA adapters that are served beside the model. A change makes a new "
            "revision.",
            extra_json_schema={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = field(default_factory=list)


class Cache(Part, frozen=True):
    """Where the model's files are kept. Not used for pvc:// models."""

    rules = (
        Rule(
            "self.mode == 'existing' ? has(self.existingClaim) : !has(self.existingClaim)",
            "cache.existingClaim is required with cache.mode existing, and only there",
        ),
        Rule(
            "self.mode != 'none' || !self.prefetch",
            "cache.prefetch needs a claim: set cache.mode shared or existing, or remove it",
        ),
    )

    mode: Annotated[
        Literal["shared", "existing", "none"],
        Meta(
            description="`shared` (default): one claim per model, revision and namespace, made "
            "by the operator, shared by all services that use it and removed with "
            "the last of them. `existing`: a claim of yours. `none`: an emptyDir, "
            "fetched anew by each pod, without credentials.",
        ),
    ] = "shared"
    size: Annotated[
        QuantityField | None,
        Meta(
            description="Size of the claim (mode shared) or limit of the emptyDir (mode none). "
            "Unset: the claim gets the model's own size and 10 %, in whole GiB, the emptyDir no "
            "limit. A larger value grows a claim whose storage class allows it; with mode none "
            "another value makes a new revision.",
        ),
    ] = None
    storage_class_name: Annotated[
        Annotated[str, Meta(min_length=1, max_length=253)] | None,
        Meta(
            description="Storage class of the claim (mode shared). Unset: the cluster's "
            "default. Read when the claim is made.",
        ),
    ] = None
    access_mode: Annotated[
        Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"],
        Meta(
            description="Access mode of the claim (mode shared). Default ReadWriteOnce, which "
            "keeps all replicas on the volume's node (a required podAffinity, which "
            "podTemplate may replace); ReadWriteMany lets them spread. Read when the "
            "claim is made.",
        ),
    ] = "ReadWriteOnce"
    existing_claim: Annotated[
        Annotated[str, Meta(min_length=1, max_length=253)] | None,
        Meta(
            description="Name of the claim with mode existing. The model goes to a folder of "
            "its own, quire-<hash>.",
        ),
    ] = None
    prefetch: Annotated[
        bool,
        Meta(description="Fetch the model even while replicas is 0. Default false."),
    ] = False
