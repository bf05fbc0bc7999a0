"""The adapters of a served model: under which names, from where, and whether the engine has taken them."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from octavo.base.config import AdaptersConfig, ModelConfig
from octavo.base.errors import (
    CheckpointError,
    InvalidConfig,
    InvalidRequest,
    ModelNotFound,
    ServerError,
    StartupError,
    clip,
    unusable_adapter,
)
from octavo.files.adapters import adapter_in, is_prompt_adapter, peft_type, resolve_adapter
from octavo.served.voice import Voice
from octavo.wire.messages import AdapterInfo

logger = logging.getLogger(__name__)

#: Names that are looked up as parts of a path.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_NAME_CHARS: Final = 256


class AdapterEngine(Protocol):
    """What of `parts.Engine` is about adapters."""

    async def load_adapter(self, key: str, path: str, *, is_prompt: bool = False) -> AdapterInfo: ...

    async def drop_adapter(self, key: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Adapter:
    """`key`: what the engine knows it by; never that of another adapter, nor of this one loaded again."""

    name: str
    key: str
    path: str  # on this machine
    source: str  # as it was given
    is_prompt: bool = False  # it puts rows in front of prompts, and changes no weights
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """`voice`: None: texts become tokens as the model's do."""

    info: AdapterInfo
    voice: Voice | None = None


@dataclass(frozen=True, slots=True)
class AdapterModule:
    """One of --lora-modules, or of --prompt-adapters."""

    name: str
    path: str
    is_prompt: bool = False

    @property
    def flag(self) -> str:
        return "--prompt-adapters" if self.is_prompt else "--lora-modules"


class Adapters:
    """Of one model. All is done on the event loop but the search for files."""

    def __init__(
        self,
        engine: AdapterEngine,
        model: ModelConfig,
        taken: Sequence[str],
        resolver_dir: str | None = None,
        read_voice: Callable[[Path], Voice | None] = lambda path: None,
        numbers: Iterator[int] | None = None,
    ) -> None:
        """Of both kinds. `taken`: names that no adapter may have. `read_voice`: `voice.voice_reader`. `numbers`: for
        keys; no other process on the engine has them."""
        self._read_voice = read_voice
        self._engine, self._model, self._taken = engine, model, taken
        self._directory = None if resolver_dir is None else Path(resolver_dir).expanduser()
        self._by_name: dict[str, Adapter] = {}
        self._loading: dict[str, asyncio.Task[AdapterFacts]] = {}  # by key: until the engine has taken it, or cannot
        self._ready: dict[str, AdapterFacts] = {}  # by key: what is known once the engine has taken it
        self._numbers = numbers or itertools.count(1)

    @property
    def names(self) -> tuple[str, ...]:
        """Those of prompt adapters last."""
        return tuple(sorted(self._by_name, key=lambda name: self._by_name[name].is_prompt))

    def find(self, name: str) -> Adapter | None:
        """The adapter that a request names, also one that lies in the directory and was not asked for before."""
        found = self._by_name.get(name)
        if found is None and self._directory is not None and _NAME.fullmatch(name):
            path = adapter_in(self._directory, name)
            if path is not None:
                found = self._by_name[name] = self._made(name, path, str(path))
        return found

    def new_key(self, name: str) -> str:
        return f"{next(self._numbers)} {name}"

    async def load(self, name: str, source: str, key: str = "", *, is_prompt: bool | None = None) -> Adapter:
        """Serve an adapter from here on. `key`: where other processes serve it too, by this one; "": a new one.
        `is_prompt`: of which kind it has to be.

        Raises `InvalidRequest`, and `ServerError` where the engine is gone.
        """
        if not name or len(name) > _MAX_NAME_CHARS or not name.isprintable():
            raise InvalidRequest("`lora_name` is a text of 1 to 256 printable characters.", "lora_name")
        if name in self._taken or name in self._by_name:
            raise InvalidRequest(f"The name `{clip(name, 64)}` is taken: a model or an adapter has it.", "lora_name")
        path = await self._found(name, source)
        adapter = self._made(name, path, source, key)
        if is_prompt is not None and adapter.is_prompt != is_prompt and (kind := peft_type(path)):
            wanted = "a prompt adapter" if is_prompt else "a LoRA adapter"
            raise unusable_adapter(name, f"{source} is not {wanted}: its peft_type is {clip(kind, 40)}", "lora_path")
        await self.ready(adapter)
        if name in self._by_name:  # by another load meanwhile
            await self._engine.drop_adapter(adapter.key)
            raise InvalidRequest(f"The name `{clip(name, 64)}` is taken: a model or an adapter has it.", "lora_name")
        self._by_name[name] = adapter
        logger.info("adapter %s is served, from %s", name, source)
        return adapter

    async def of_path(self, name: str, source: str, *, is_prompt: bool) -> Adapter:
        """`load`, or what was loaded under this name from the same place."""
        found = self._by_name.get(name)
        if found is None or found.source != source or found.is_prompt != is_prompt:
            return await self.load(name, source, is_prompt=is_prompt)
        return found

    async def forget(self, name: str, key: str) -> None:
        """`unload` the adapter of this key, if it is served."""
        adapter = self._by_name.get(name)
        if adapter is not None and adapter.key == key:
            await self.unload(name)

    async def unload(self, name: str) -> None:
        """Serve it no more; requests that use it go on to their end. Raises `ModelNotFound`."""
        adapter = self._by_name.pop(name, None)
        if adapter is None:
            raise ModelNotFound(f"There is no adapter `{clip(name, 64)}`.", "lora_name")
        self._ready.pop(adapter.key, None)
        await self._engine.drop_adapter(adapter.key)
        logger.info("adapter %s is served no more", name)

    async def ready(self, adapter: Adapter) -> AdapterFacts:
        """Wait until the engine has seen the adapter's files and found them fit. Raises `InvalidRequest`."""
        found = self._ready.get(adapter.key)
        if found is not None:
            return found
        task = self._loading.get(adapter.key)
        if task is None:
            task = self._loading[adapter.key] = asyncio.create_task(self._load(adapter))
        return await asyncio.shield(task)  # it is others' too

    async def _load(self, adapter: Adapter) -> AdapterFacts:
        try:
            info = await self._engine.load_adapter(adapter.key, adapter.path, is_prompt=adapter.is_prompt)
            facts = AdapterFacts(info, await self._voice(adapter))
        except (ServerError, InvalidRequest) as exc:
            if self._by_name.get(adapter.name) is adapter:
                del self._by_name[adapter.name]
            if type(exc) is not ServerError:  # the engine is gone, or asleep; or the tokenizer does not fit
                raise
            raise unusable_adapter(adapter.name, exc.message, "lora_path") from None
        else:
            self._ready[adapter.key] = facts
            return facts
        finally:
            del self._loading[adapter.key]

    async def _voice(self, adapter: Adapter) -> Voice | None:
        try:
            return await asyncio.to_thread(self._read_voice, Path(adapter.path))
        except StartupError as exc:
            await self._engine.drop_adapter(adapter.key)
            raise unusable_adapter(adapter.name, exc.message, "lora_path") from None

    async def _found(self, name: str, source: str) -> Path:
        try:
            return await asyncio.to_thread(resolve_adapter, source, self._model)
        except StartupError as exc:
            raise unusable_adapter(name, exc.message, "lora_path") from None

    def _made(self, name: str, path: Path, source: str, key: str = "") -> Adapter:
        return Adapter(name, key or self.new_key(name), str(path), source, is_prompt_adapter(path))


async def load_modules(adapters: Adapters | None, config: AdaptersConfig) -> None:
    """Those of --lora-modules and --prompt-adapters, one after the other. Raises `CheckpointError` for one that does
    not fit.

    Their keys are the same in all processes that serve them, and no others'.
    """
    if adapters is None:
        return
    for module in parse_modules(config, ()):
        try:
            await adapters.load(module.name, module.path, f"module {module.name}", is_prompt=module.is_prompt)
        except InvalidRequest as exc:
            raise CheckpointError(f"{module.flag} {module.name}: {exc.message}") from None


def parse_modules(config: AdaptersConfig, names: Sequence[str]) -> list[AdapterModule]:
    """Of --lora-modules `name=path` or JSON objects, of --prompt-adapters `name=path`. `names`: of the model, which
    `base_model_name` must be one of; none: anything. Raises `InvalidConfig`."""
    modules = [_module(word, names) for word in config.lora_modules]
    modules += [_named_path(word, is_prompt=True) for word in config.prompt_adapters]
    seen: set[str] = set()
    for module in modules:
        if module.name in seen or module.name in names:
            raise InvalidConfig(f"{module.flag}: the name {module.name!r} is taken twice")
        seen.add(module.name)
    return modules


def _module(word: str, names: Sequence[str]) -> AdapterModule:
    if word.lstrip().startswith("{"):
        try:
            given: Any = json.loads(word)
        except ValueError:
            raise InvalidConfig(f"--lora-modules: {clip(word, 80)!r} is not JSON") from None
        unknown = given.keys() - {"name", "path", "base_model_name"}
        if unknown or not all(isinstance(given.get(key), str) and given[key] for key in ("name", "path")):
            raise InvalidConfig(f"--lora-modules: {clip(word, 80)!r} needs name and path, and may have base_model_name")
        base = given.get("base_model_name")
        if base is not None and names and base not in names:
            raise InvalidConfig(
                f"--lora-modules: base_model_name {clip(str(base), 80)!r} is not the model that is served"
            )
        return AdapterModule(given["name"], given["path"])
    return _named_path(word, is_prompt=False)


def _named_path(word: str, *, is_prompt: bool) -> AdapterModule:
    name, _, path = word.partition("=")
    module = AdapterModule(name, path, is_prompt)
    if not name or not path:
        raise InvalidConfig(f"{module.flag}: {clip(word, 80)!r} is not name=path")
    return module
