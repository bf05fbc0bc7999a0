"""The routes of Ollama's API."""

from __future__ import annotations

from dataclasses import replace

from octavo.server.http.routing import Route
from octavo.server.ollama import protocol as body
from octavo.server.ollama.embedding import EmbeddingHandlers
from octavo.server.ollama.errors import NDJSON, OllamaError
from octavo.server.ollama.generation import GenerationHandlers
from octavo.server.ollama.models import ModelHandlers
from octavo.server.openai.serving import Serving


def ollama_routes(serving: Serving) -> list[Route]:
    embedding = EmbeddingHandlers(serving)
    generation, models = GenerationHandlers(serving), ModelHandlers(serving)
    chat, chat_reply = body.OllamaChatRequest, body.OllamaChatReply
    generate, reply = body.OllamaGenerateRequest, body.OllamaGenerateReply
    table = [
        Route(
            "POST", "/api/chat", generation.chat, "Answer a conversation, as Ollama does", chat, chat_reply, chat_reply
        ),
        Route("POST", "/api/generate", generation.generate, "Answer a prompt, as Ollama does", generate, reply, reply),
        Route(
            "POST",
            "/api/embed",
            embedding.embed,
            "Vectors of texts, as Ollama has them",
            body.EmbedRequest,
            body.EmbedReply,
        ),
        Route(
            "POST",
            "/api/embeddings",
            embedding.embeddings,
            "The vector of a text, as Ollama had it",
            body.EmbeddingsRequest,
            body.EmbeddingsReply,
        ),
        Route("POST", "/api/show", models.show, "Describe one model, as Ollama does", body.ShowRequest, body.ShowReply),
        Route("GET", "/api/tags", models.tags, "List the models, as Ollama does", reply=body.TagsReply),
        Route("GET", "/api/ps", models.running, "List the models in memory, which are all", reply=body.RunningReply),
        Route("GET", "/api/version", models.version, "The version of Ollama's API", reply=body.OllamaVersion),
    ]
    return [replace(route, error=OllamaError, stream_type=NDJSON) for route in table]
