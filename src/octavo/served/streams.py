"""Streams of a turn: those of several prompts as one, gathered into larger pieces, and read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

from octavo.client.generation import CompletionDelta, GenerationDelta
from octavo.served.events import News
from octavo.served.parts import DeltaStream
from octavo.served.reading import OutputReading, SampleReader, plain

#: A delta and the place of its prompt.
Placed = tuple[int, GenerationDelta]


class NewsReader:
    """The samples of one prompt. `reading` None: all of their text is content."""

    def __init__(self, place: int, reading: OutputReading | None) -> None:
        self._place = place
        self._reading = reading
        self._readers: dict[int, SampleReader] = {}

    def read(self, delta: GenerationDelta) -> News:
        reading = self._reading
        if reading is None:
            samples = [plain(output) for output in delta.outputs]
        else:
            samples = []
            for output in delta.outputs:
                reader = self._readers.get(output.index)
                if reader is None:
                    reader = self._readers[output.index] = SampleReader(reading)
                samples.append(reader.read(output))
        num_reasoning = None
        if reading is not None and reading.has_reasoning:
            num_reasoning = sum(reader.num_reasoning_tokens for reader in self._readers.values())
        return News(
            self._place,
            samples,
            delta.num_prompt_tokens,
            delta.num_cached_tokens,
            delta.num_output_tokens,
            num_reasoning,
            delta.prompt_logprobs,
            delta.times,
            delta.progress,
        )


async def merged(streams: list[DeltaStream]) -> AsyncGenerator[Placed, None]:
    """One task a stream, and a queue with room for one delta of each: a slow reader still gets merged deltas."""
    queue: asyncio.Queue[tuple[int, GenerationDelta | Exception | None]] = asyncio.Queue(len(streams))

    async def pump(place: int, stream: DeltaStream) -> None:
        end: Exception | None = None
        try:
            async for delta in stream:
                await queue.put((place, delta))
        except Exception as exc:  # noqa: BLE001  (raised again by the reader)
            end = exc
        await queue.put((place, end))

    tasks = [asyncio.create_task(pump(place, stream)) for place, stream in enumerate(streams)]
    try:
        num_open = len(tasks)
        while num_open:
            place, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield place, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def at_intervals(deltas: AsyncIterator[Placed], interval: int) -> AsyncGenerator[Placed, None]:
    """The same stream with at least `interval` tokens in a sample's delta.

    A sample's first text and its end are never delayed. When the stream fails, what was held comes before the error.
    """
    held: dict[tuple[int, int], CompletionDelta] = {}
    begun: set[tuple[int, int]] = set()
    last: dict[int, GenerationDelta] = {}
    try:
        async for place, delta in deltas:
            last[place] = delta
            ready = []
            for output in delta.outputs:
                key = (place, output.index)
                if key in held:
                    output = _joined(held.pop(key), output)
                is_due = len(output.token_ids) >= interval or output.finish_reason is not None
                if is_due or (key not in begun and output.text):
                    begun.add(key)
                    ready.append(output)
                else:
                    held[key] = output
            if ready or delta.finished or delta.progress is not None:
                yield place, replace(delta, outputs=ready)
    except Exception:
        for (place, _), output in held.items():
            yield place, replace(last[place], outputs=[output])
        raise


def _joined(first: CompletionDelta, second: CompletionDelta) -> CompletionDelta:
    logprobs = None
    if first.logprobs is not None or second.logprobs is not None:
        logprobs = [*(first.logprobs or []), *(second.logprobs or [])]
    return replace(
        second, text=first.text + second.text, token_ids=first.token_ids + second.token_ids, logprobs=logprobs
    )
