"""Embeddings, /pooling, /classify, /score and /rerank: request and reply bodies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field

from octavo.server.openai.protocol.common import Int, Refusals, WireModel, inert
from octavo.server.openai.protocol.conversation import ConversationFields, Messages

MAX_TEXTS = 100_000
Texts = Annotated[list[str], Field(max_length=MAX_TEXTS)]
TextOrIds = (
    str
    | Texts
    | Annotated[list[Int], Field(max_length=1 << 24)]
    | Annotated[list[list[Int]], Field(max_length=MAX_TEXTS)]
)


class TextFields(WireModel):
    """What all of these have."""

    model: str | None = None
    truncate_prompt_tokens: Int | None = None
    priority: Int | None = None
    cache_salt: str | None = None


class InputFields(ConversationFields):
    """`input` or `messages`. `prompt_name`: of what the model's files put in front of a text."""

    model: str | None = None
    input: TextOrIds | None = None
    messages: Messages | None = None
    truncate_prompt_tokens: Int | None = None
    priority: Int | None = None
    cache_salt: str | None = None
    prompt_name: str | None = None


class EmbeddingRequest(InputFields):
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Int | None = None
    normalize: bool | None = None
    use_activation: bool | None = None  # another name of normalize


class PoolingRequest(InputFields):
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Int | None = None
    normalize: bool | None = None
    use_activation: bool | None = None
    activation: bool | None = None
    pooling_type: Literal["CLS", "LAST", "MEAN", "ALL"] | None = None
    task: Literal["embed", "token_embed", "classify"] | None = None


class ClassifyRequest(InputFields):
    activation: bool | None = None
    use_activation: bool | None = None


class ScoreRequest(TextFields):
    """Each text of one side with its counterpart of the other; one text with all of them."""

    text_1: str | Texts | None = None
    text_2: str | Texts | None = None
    queries: str | Texts | None = None
    documents: str | Texts | None = None
    activation: bool | None = None
    use_activation: bool | None = None


class DocumentObject(WireModel):
    text: str


class RerankRequest(TextFields):
    query: str
    documents: Annotated[list[str | DocumentObject], Field(max_length=MAX_TEXTS, min_length=1)]
    top_n: Int | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Int | None = None
    activation: bool | None = None
    use_activation: bool | None = None


EMBEDDING_REFUSALS: Refusals = {
    "embed_dtype": inert(None, "float32"), "endianness": inert(None, "native", "little"),
    "mm_processor_kwargs": inert(None),
}  # fmt: skip
RERANK_REFUSALS: Refusals = {"rank_fields": inert(None, []), "max_chunks_per_doc": inert(None)}


class TextUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class EmbeddingData(msgspec.Struct):
    index: int
    embedding: list[float] | str  # or base64 of float32, little-endian
    object: str = "embedding"


class EmbeddingReply(msgspec.Struct):
    id: str
    created: int
    model: str
    data: list[EmbeddingData]
    usage: TextUsage
    object: str = "list"


class PoolingData(msgspec.Struct):
    index: int
    data: list[float | list[float]] | str
    object: str = "pooling"


class PoolingReply(msgspec.Struct):
    id: str
    created: int
    model: str
    data: list[PoolingData]
    usage: TextUsage
    object: str = "list"


class ClassifyData(msgspec.Struct):
    index: int
    label: str | None  # of the largest value
    probs: list[float]
    num_classes: int


class ClassifyReply(msgspec.Struct):
    id: str
    created: int
    model: str
    data: list[ClassifyData]
    usage: TextUsage
    object: str = "list"


class ScoreData(msgspec.Struct):
    index: int
    score: float
    object: str = "score"


class ScoreReply(msgspec.Struct):
    id: str
    created: int
    model: str
    data: list[ScoreData]
    usage: TextUsage
    object: str = "list"


class RerankDocument(msgspec.Struct):
    text: str


class RerankResult(msgspec.Struct):
    index: int  # of the document in the request
    relevance_score: float
    document: RerankDocument | UnsetType = UNSET


class BilledUnits(msgspec.Struct):
    search_units: int = 1


class RerankMeta(msgspec.Struct):
    api_version: dict[str, Any]
    billed_units: BilledUnits


class RerankReply(msgspec.Struct):
    """The results are in the order of their scores."""

    id: str
    model: str
    results: list[RerankResult]
    usage: TextUsage
    meta: RerankMeta | UnsetType = UNSET
