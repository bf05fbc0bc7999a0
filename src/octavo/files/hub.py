"""Repositories of the Hugging Face hub, or of the mirror that HF_ENDPOINT names."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from octavo.base.errors import CheckpointError
from octavo.files.near_files import near_models


@contextlib.contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """The hub's client draws bars into logs and pipes too, unless it is told not to."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    is_chosen = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled()
    if is_chosen or sys.stderr.isatty():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


class HuggingFaceHub:
    """One repository of the hub. Every error becomes a `CheckpointError` that says what to do."""

    def __init__(self, name: str, repo: str, revision: str | None, directory: str | None) -> None:
        self.name, self.repo = name, repo
        # Imported here: a local model must not pay for it.
        import huggingface_hub
        from huggingface_hub import constants

        self._hub, self._constants = huggingface_hub, constants
        self._options: dict[str, Any] = {"revision": revision, "cache_dir": directory}

    def snapshot(self, patterns: Sequence[str], ignored: Sequence[str] = ()) -> Path:
        download = self._hub.snapshot_download
        found = self._call(
            lambda: download(self.repo, allow_patterns=list(patterns), ignore_patterns=list(ignored), **self._options)
        )
        return Path(found)

    def file(self, path: str) -> Path:
        return Path(self._call(lambda: self._hub.hf_hub_download(self.repo, path, **self._options)))

    def list_files(self) -> list[str]:
        """The repository's files; when the hub cannot be reached, those of them that are in the cache."""
        try:
            return list(self._call(lambda: self._hub.list_repo_files(self.repo, revision=self._options["revision"])))
        except CheckpointError:
            found = self._cached_files()
            if not found:
                raise
            return found

    def _cached_files(self) -> list[str]:
        directory = self._options["cache_dir"] or self._constants.HF_HUB_CACHE
        if not Path(directory).is_dir():
            return []
        revisions = (r.revisions for r in self._hub.scan_cache_dir(directory).repos if r.repo_id == self.repo)
        commits = [commit for of_repo in revisions for commit in of_repo]
        return sorted({str(f.file_path.relative_to(c.snapshot_path)) for c in commits for f in c.files})

    def _call(self, action: Callable[[], Any]) -> Any:
        from huggingface_hub import errors

        endpoint = self._constants.ENDPOINT
        revision = self._options["revision"]
        try:
            with _bars_on_terminals_only():
                return action()
        except errors.GatedRepoError as e:
            reason = f"access to it must be granted at {endpoint}/{self.repo}; then set HF_TOKEN"
            raise CheckpointError(f"model {self.name}: {reason}") from e
        except errors.RevisionNotFoundError as e:
            raise CheckpointError(f"model {self.name} has no revision {revision!r}") from e
        except errors.RepositoryNotFoundError as e:
            raise CheckpointError(
                f"model {self.name}: there is no such directory here and no such repository at {endpoint} "
                f"(a private one needs HF_TOKEN){self._near_here()}"
            ) from e
        except errors.RemoteEntryNotFoundError as e:
            raise CheckpointError(f"model {self.name}: {self.repo} has no such file") from e
        except errors.HFValidationError as e:
            raise CheckpointError(f"model {self.name!r} is neither a path nor the name of a repository") from e
        # Without a network the hub's client raises errors of its HTTP library, all OSErrors or of these classes.
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as e:
            raise CheckpointError(self._unreachable(endpoint, e)) from e
        except Exception as e:
            if type(e).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
                raise CheckpointError(self._unreachable(endpoint, e)) from e
            raise

    def _unreachable(self, endpoint: str, error: Exception) -> str:
        if self._constants.HF_HUB_OFFLINE:
            why = "HF_HUB_OFFLINE is set"
        else:
            cause = error.__cause__ or error
            why = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        return (
            f"model {self.name} is not on this machine and could not be fetched from {endpoint} ({why}). "
            "Give the path of a directory or .gguf file, check the network or HF_ENDPOINT, "
            f"or run without a model name for the demo model{self._near_here()}"
        )

    def _near_here(self) -> str:
        """Models on this machine with similar paths: a misspelt path looks like a name of the hub."""
        near = near_models(Path(self.name))
        return f"; did you mean {' or '.join(map(str, near))}?" if near else ""
