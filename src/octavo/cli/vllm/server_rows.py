"""vLLM's flags of the HTTP server, of chat and of tools."""

from __future__ import annotations

from octavo.cli.vllm.row import ANY, EMPTY, NONE, OFF, Row, other, ours, switch

_HEADERS = "octavo takes at most 100 headers and 64 KiB of them"

SERVER_ROWS: tuple[Row, ...] = (
    # ---- of 0.6.0
    ours("--host", "none", "none"),
    ours("--port", "8000", "8000"),
    ours("--uvicorn-log-level", "info", "info", "It is the level of octavo's own log too."),
    ours("--allow-credentials", "off", "off"),
    ours("--allowed-origins", '["*"]', "none", "Pages of other sites are not answered unless they are named here."),
    ours("--allowed-methods", '["*"]', '["*"]'),
    ours("--allowed-headers", '["*"]', '["*"]'),
    ours("--api-key", "none", "none", "Every path but /, /health and /ready needs it; see --public-paths."),
    ours("--lora-modules", "none", "none"),
    ours("--prompt-adapters", "none", None),
    ours("--chat-template", "none", "none"),
    ours("--response-role", "assistant", "assistant"),
    ours("--ssl-keyfile", "none", "none"),
    ours("--ssl-certfile", "none", "none"),
    ours("--ssl-ca-certs", "none", "none"),
    ours("--ssl-cert-reqs", "0", "0"),
    ours("--root-path", "none", "none"),
    ours("--middleware", "[]", "[]"),
    ours("--return-tokens-as-token-ids", "off", "off"),
    switch(
        "--disable-frontend-multiprocessing", "off", "off", "Run the engine in the API process.", ANY,
        "the engine of octavo has a process of its own, which changes no reply",
    ),
    ours("--enable-auto-tool-choice", "off", "off"),
    ours("--tool-call-parser", "none", "none", "Found from the model's files; a name is rarely needed."),
    ours("--max-log-len", "none", "none", "It bounds what --enable-log-requests writes."),
    Row(option="--config", seed="none", today="none", meaning="YAML file with long flag names as keys."),
    Row(option="--model", seed="facebook/opt-125m", today="Qwen/Qwen3-0.6B", meaning="The model, as MODEL."),
    # ---- since then
    ours("--uds", None, "none"),
    ours("--api-server-count", None, "1", renamed={"0": None}, short="-asc"),
    switch("--headless", None, "off", "Run engines without an API server.", OFF, "octavo's engine is no server"),
    switch("--grpc", None, "off", "Serve gRPC instead of HTTP.", OFF, "octavo serves HTTP only"),
    other("--grpc-port", None, "none", "Port of gRPC.", ANY, "it asks for nothing without --grpc", kind="int"),
    switch(
        "--enable-request-id-headers", None, "off", "Send X-Request-Id with replies.", ANY,
        "octavo always gives a reply its request's id",
    ),
    switch(
        "--disable-uvicorn-access-log", None, "off", "No log line for each HTTP request.", ANY,
        "octavo has such lines at --uvicorn-log-level debug only",
    ),
    other(
        "--disable-access-log-for-endpoints", None, "none", "Paths without a log line for each HTTP request.", ANY,
        "octavo has such lines at --uvicorn-log-level debug only",
    ),
    ours("--sse-keep-alive-interval", None, "0"),
    ours("--stream-interval", None, "1"),
    ours("--enable-force-include-usage", None, "off"),
    switch(
        "--enable-prompt-tokens-details", None, "off", "Tell in the usage how many tokens were cached.", ANY,
        "octavo always tells how much of a prompt was cached",
    ),
    ours("--enable-per-request-metrics", None, "off"),
    switch(
        "--enable-server-load-tracking", None, "off", "Count requests for /load.", ANY,
        "octavo always counts them: see /load",
    ),
    other(
        "--fingerprint-mode", None, "none", "What system_fingerprint is made of.", NONE,
        "octavo's system_fingerprint always stands for the model, its types, the device and octavo's version",
    ),
    other("--h11-max-incomplete-event-size", None, "4194304", "Most bytes of a request's head.", NONE, _HEADERS,
          kind="int"),
    other("--h11-max-header-count", None, "256", "Most headers of a request.", NONE, _HEADERS, kind="int"),
    switch(
        "--enable-ssl-refresh", None, "off", "Read TLS files again when they change.", OFF,
        "octavo reads TLS files at start: restart it, or end TLS in a proxy",
    ),
    ours("--ssl-ciphers", None, "none"),
    ours("--shutdown-timeout", None, "0"),
    switch("--enable-log-outputs", None, "off", "Log what models write.", OFF, "octavo never logs outputs"),
    switch("--enable-log-deltas", None, "on", "Log each part of a stream.", ANY, "octavo never logs outputs"),
    switch(
        "--log-error-stack", None, "off", "Log a traceback with each error.", ANY,
        "octavo logs the traceback of every error that is its own, and of no other",
    ),
    ours("--log-config-file", None, "none", "It may name octavo's formatters: octavo.base.log.JSONFormatter."),
    ours("--disable-fastapi-docs", None, "off"),
    switch(
        "--enable-offline-docs", None, "off", "Serve /docs without another host.", ANY,
        "octavo's /docs needs no other host",
    ),
    ours("--enable-tokenizer-info-endpoint", None, "off"),
    ours("--exclude-tools-when-tool-choice-none", None, "off"),
    ours("--reasoning-parser", None, "none"),
    switch(
        "--enable-reasoning", None, None, "Tell thoughts from content.", ANY,
        "--reasoning-parser alone does it, with the format's name or auto",
    ),
    ours("--tool-parser-plugin", None, "none", "It is written against octavo's own interface."),
    other(
        "--reasoning-parser-plugin", None, "none", "Python file with further formats of reasoning.", EMPTY,
        "octavo takes no code for formats of reasoning; see --reasoning-parser",
    ),
    other(
        "--tool-server", None, "none", "Tools that the server itself calls (MCP).", EMPTY,
        "MCP servers, for /v1/responses, are named by --mcp-servers",
    ),
    ours("--tool-strict-level", None, "auto"),
    ours("--default-chat-template-kwargs", None, "none"),
    ours("--chat-template-content-format", None, "auto"),
    ours("--trust-request-chat-template", None, "off"),
)  # fmt: skip
