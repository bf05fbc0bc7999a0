"""A batch from its settings to its exit code."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from octavo.base.command_line import shell_word
from octavo.base.config import ServeConfig
from octavo.base.errors import InvalidConfig
from octavo.base.log import setup_logging
from octavo.files.sources import cache_dir
from octavo.launch.in_process import InProcess, run_in_process
from octavo.offline.batch.config import BatchConfig, check_batch, is_url, shown
from octavo.offline.batch.lines import LineParser, read_lines
from octavo.offline.batch.results import ResultFile
from octavo.offline.batch.runner import BatchRunner, Progress
from octavo.offline.batch.transfer import fetch, put
from octavo.server.ollama.errors import NDJSON

logger = logging.getLogger(__name__)

#: The batch is done, and some of its results are errors.
EXIT_WITH_ERRORS = 3


def run_batch(batch: BatchConfig, config: ServeConfig, notes: Sequence[tuple[int, str]] = ()) -> int:
    """Run a batch, or the rest of one; the exit code. Raises `BatchError`, `StartupError` and `ServerError`.

    0: every line has a reply; `EXIT_WITH_ERRORS`: every line has a result, and some are errors; 128 + the signal's
    number: stopped. To be called in the main thread. `notes`: levels of `logging` and lines, to be told first.
    """
    check_batch(batch)
    setup_logging(setup=config.server, process="batch")
    for level, line in notes:
        logger.log(level, "%s", line)
    output = _output_path(batch)
    with _input_path(batch.input_file) as path:
        if output.exists() and output.samefile(path):
            raise InvalidConfig("--input-file and --output-file are the same file")
        with contextlib.closing(ResultFile(output)) as results:
            code = _run(batch, config, path, results)
            num_errors = results.num_errors
    if code:
        logger.info("stopped; the same command goes on from here")
        return code
    if is_url(batch.output_file):
        put(output, batch.output_file)
        output.unlink()
    if num_errors:
        logger.warning("%d results are errors", num_errors)
    return EXIT_WITH_ERRORS if num_errors else 0


def _run(batch: BatchConfig, config: ServeConfig, path: Path, results: ResultFile) -> int:
    parser = LineParser(config.server.max_body_bytes, config.server.max_json_depth)
    total, done = _counts(path, parser, results)
    words = f"octavo run-batch -i {shell_word(shown(batch.input_file))} -o {shell_word(shown(batch.output_file))}"
    logger.info("%s: %d lines, %d of them done before", words, total, done)
    if done == total:
        return 0

    async def work(served: InProcess) -> None:
        posts = [route for route in served.routes if route.method == "POST" and not route.for_admins]
        posts = [route for route in posts if (route.body or route.form) is not None]
        # Ollama's stream unless they are told not to.
        paths = [route.path for route in posts if "{" not in route.path and route.stream_type != NDJSON]
        # Enough that no step has room while lines are left; the rest waits in the file.
        window = min(total - done, 2 * served.state.models.default.info.max_num_seqs)
        runner = BatchRunner(served.app, served.state, paths, parser=parser, results=results, window=window)
        with Progress(total, done) as progress:
            await runner.run(path, progress)

    return run_in_process(config, work, serves_metrics=batch.enable_metrics)


def _counts(path: Path, parser: LineParser, results: ResultFile) -> tuple[int, int]:
    """The lines, and those that have a result. Raises `BatchError` where a result is of another request."""
    if not results.num_results:
        return sum(1 for _ in read_lines(path, parser.most_bytes)), 0
    total = done = 0
    for line in parser.lines(path):
        total += 1
        done += results.has(line)
    return total, done


@contextlib.contextmanager
def _input_path(name: str) -> Iterator[Path]:
    """The input as a file that can be read twice."""
    if not is_url(name):
        path = Path(name).expanduser()
        if not path.is_file():
            raise InvalidConfig(f"--input-file {name}: there is no such file")
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="octavo-batch-", suffix=".jsonl") as file:
        logger.info("getting %s", shown(name))
        fetch(name, file)  # type: ignore[arg-type]  # a wrapper that has all of a file's methods
        yield Path(file.name)


def _output_path(batch: BatchConfig) -> Path:
    """Where results are written. For an address a file that a later run of the same command finds again: the query,
    which holds a signature and a date, does not count."""
    if not is_url(batch.output_file):
        return Path(batch.output_file).expanduser()
    directory = Path(batch.output_tmp_dir).expanduser() if batch.output_tmp_dir else cache_dir() / "batches"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InvalidConfig(f"--output-tmp-dir {directory} cannot be made: {exc.strerror}") from exc
    digest = hashlib.sha256(f"{shown(batch.input_file)}\n{shown(batch.output_file)}".encode()).hexdigest()
    return directory / f"{digest[:24]}.jsonl"
