"""What crosses between the API processes of a server and their parent: frames over one socket pair each."""

from __future__ import annotations

from typing import Any

from octavo.base.config import EngineConfig, ServeConfig
from octavo.wire.messages import Message, StartupFailed


# ---------------------------------------------------------------- parent -> API process
class Setup(Message, frozen=True, gc=False):
    """The first frame. File descriptors are those of the process, which inherits them."""

    index: int
    count: int
    config: ServeConfig  # as it was given, with the keys of --api-key-file
    resolved: EngineConfig  # as the engine got it
    default_sampling: dict[str, Any]
    url: str
    listen_fds: list[int]
    engine_fd: int
    engine_pid: int
    occupancy_fd: int  # `client.siblings.Occupancy`


class Serve(Message, frozen=True, gc=False):
    """All are ready: accept connections."""


class Signalled(Message, frozen=True, gc=False):
    """A signal came for the server: the first one drains, the second ends."""

    signum: int


class Run(Message, frozen=True, gc=False):
    """Do what is offered by this name; a `Ran` with the number follows."""

    number: int
    name: str
    args: tuple[Any, ...]


class Failure(Message, frozen=True, gc=False):
    """An error, by the name of its class."""

    error: str
    message: str
    param: str | None = None


class Answer(Message, frozen=True, gc=False):
    """To an `Ask`: a result, of all processes a list of results."""

    number: int
    result: Any = None
    failure: Failure | None = None


ToApiProcess = Serve | Signalled | Run | Answer


# ---------------------------------------------------------------- API process -> parent
class Ready(Message, frozen=True, gc=False):
    """The process could serve."""


class Listening(Message, frozen=True, gc=False):
    """It accepts connections."""


class Leaving(Message, frozen=True, gc=False):
    """It ends by itself within `seconds`."""

    status: str
    seconds: float


class Ask(Message, frozen=True, gc=False):
    """Of the parent, or of all processes. The number is the process's own."""

    number: int
    name: str
    args: tuple[Any, ...]
    everywhere: bool


class Ran(Message, frozen=True, gc=False):
    number: int
    result: Any = None
    failure: Failure | None = None


FromApiProcess = Ready | StartupFailed | Listening | Leaving | Ask | Ran
