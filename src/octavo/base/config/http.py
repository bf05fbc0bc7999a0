"""The HTTP server: where it listens, who may reach it, and which pages it serves."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.base.config.options import opt


@dataclass(frozen=True, kw_only=True)
class HTTPConfig:
    """The HTTP server: where it listens, who may reach it, and which pages it serves."""

    host: str | None = opt(None, "Address to bind; default: all interfaces.")
    port: int = opt(8000, "Port to bind; 0: any free one.", low=0, high=65535)
    api_server_count: int = opt(
        1,
        "API processes in front of the engine, each with a tokenizer of its own; they share the port. More than one "
        "are for engines that make tokens faster than one process can send them.",
        low=1,
        high=256,
        short="-asc",
    )
    uds: str | None = opt(None, "Path of a unix socket to bind instead of a port.")
    root_path: str = opt("", "Path prefix that a proxy adds in front of the server's paths.")
    allowed_hosts: list[str] = opt(
        list, "Host names that the server answers to; *: any. Default: any; on a loopback address only loopback names."
    )
    allow_credentials: bool = opt(False, "CORS: allow credentials.")
    allowed_origins: list[str] = opt(list, "CORS: allowed origins; default: none.")
    allowed_methods: list[str] = opt(lambda: ["*"], "CORS: allowed methods.")
    allowed_headers: list[str] = opt(lambda: ["*"], "CORS: allowed headers.")
    ssl_keyfile: str | None = opt(None, "TLS key file.")
    ssl_certfile: str | None = opt(None, "TLS certificate file.")
    ssl_ca_certs: str | None = opt(None, "TLS: file of the authorities for client certificates.")
    ssl_cert_reqs: int = opt(
        0, "TLS: whether clients must show a certificate (0, 1 or 2, as in Python's ssl).", choices=(0, 1, 2)
    )
    ssl_ciphers: str | None = opt(None, "TLS: ciphers up to TLS 1.2, as OpenSSL writes them; default: OpenSSL's.")
    middleware: list[str] = opt(
        list,
        "ASGI middleware around the API, as module.name of a class or a function; may be given several times.",
        one_word=True,
    )
    timeout_keep_alive: float = opt(
        120.0,
        "Seconds that an idle connection stays open. Proxies close theirs after 60 to 90 s; with a shorter time here "
        "one may send a request into a connection that is being closed.",
        above=0.0,
    )
    shutdown_timeout: float = opt(30.0, "Seconds that running requests have to finish after TERM.", low=0.0)
    disable_fastapi_docs: bool = opt(False, "Do not serve /docs, /redoc and /openapi.json.")
    disable_ui: bool = opt(False, "Do not serve the page at /: a chat and a view of the engine.")
    enable_tokenizer_info_endpoint: bool = opt(
        False, "Serve /tokenizer_info: the tokenizer's configuration, special tokens and chat template."
    )
    slots: bool = opt(False, "Serve /slots: what runs, as llama.cpp's server tells it.")
    served_model_name: list[str] = opt(
        list, "Names by which clients may ask for the model; the first is the default and labels the metrics."
    )
    responses_store: str | None = opt(
        None,
        "SQLite file that keeps responses and conversations (/v1/responses); default: memory, until the server ends.",
    )
    responses_store_bytes: int = opt(
        256 << 20,
        "Bytes of responses and conversations that are kept; what was not used for longest goes first.",
        low=1,
        unit="bytes",
    )
    responses_store_age: float = opt(
        30 * 86400.0, "Seconds after their last use for which responses and conversations are kept.", above=0.0
    )
