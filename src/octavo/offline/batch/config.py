"""The settings of `octavo run-batch` beside those of the engine and of the replies."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.base.config import opt
from octavo.base.errors import InvalidConfig


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Where requests come from and results go, and how the run can be watched."""

    input_file: str = opt("", "File of requests, or an http(s) address to get it from.", short="-i")
    output_file: str = opt("", "File of results, or an http(s) address to put it to.", short="-o")
    output_tmp_dir: str | None = opt(
        None, "Where results are kept until they are put to an address; default: octavo's cache."
    )
    served_model_name: list[str] = opt(
        list, "Names by which requests may ask for the model; the first labels the metrics."
    )
    enable_metrics: bool = opt(False, "Serve /metrics and /health while the batch runs.")
    host: str | None = opt(None, "Address of /metrics; default: all interfaces.", aliases=("url",))
    port: int = opt(8000, "Port of /metrics; 0: any free one.", low=0, high=65535)


def is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def shown(name: str) -> str:
    """A file's name, or an address without its query, which often holds a signature, and without user and password."""
    if not is_url(name):
        return name
    scheme, _, rest = name.partition("://")
    place, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


def check_batch(config: BatchConfig) -> None:
    """Settings that must be there, or fit each other. Raises `InvalidConfig`."""
    if not config.input_file:
        raise InvalidConfig("--input-file (-i) must name the file of requests")
    if not config.output_file:
        raise InvalidConfig("--output-file (-o) must name the file of results")
    for option, name in (("--input-file", config.input_file), ("--output-file", config.output_file)):
        if "://" in name and not is_url(name):
            raise InvalidConfig(f"{option} {shown(name)}: only http and https addresses are supported")
    if config.output_tmp_dir is not None and not is_url(config.output_file):
        raise InvalidConfig("--output-tmp-dir has no use without an address as --output-file")
    if not config.enable_metrics and (config.host is not None or config.port != BatchConfig.port):
        raise InvalidConfig("--port and --url are those of /metrics: they need --enable-metrics")
