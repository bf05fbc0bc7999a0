"""Transcription beside faster-whisper: word error rate, and seconds of the clock and of CPUs, in turns.

    python bench/transcribe.py WHISPER_DIRECTORY SOUND=TEXT.txt... [--quantization int8] [--words]
        [--peer PYTHON CTRANSLATE2_DIRECTORY] [--peer-type float32] [--rounds 3] [--threads 2]

WHISPER_DIRECTORY: as octavo serves it. TEXT.txt: what is said in the sound. PYTHON: of an environment that has
faster-whisper. Each round takes every sound once from each side, greedily, behind another length of silence, so that
nothing of the round before can be used again; the best round of each counts. Goal: 1.5 times the peer's speed.

On a machine that does other things too, one thread and the seconds of CPUs say most: threads that wait for each other
spin.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile

from octavo import LLM

_PEER: Final = """
import json, os, sys, time
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device="cpu", compute_type=sys.argv[2], cpu_threads=int(sys.argv[3]))
print("ready", flush=True)
for line in sys.stdin:
    segments, info = model.transcribe(line.strip(), beam_size=1, language="en", word_timestamps=sys.argv[4] == "words")
    print(json.dumps("".join(segment.text for segment in segments)), flush=True)
"""
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def words(text: str) -> list[str]:
    return re.sub(r"[^\w\s']", " ", text.lower()).split()


def num_errors(wanted: list[str], found: list[str]) -> int:
    """Words that were left out, added or changed, at least."""
    row = list(range(len(found) + 1))
    for i, word in enumerate(wanted, 1):
        before, row = row, [i]
        for j, other in enumerate(found, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (word != other)))
    return row[-1]


def cpu_seconds(pid: int) -> float:
    """Of a process and of those that it started and that live."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    threads = [path.name for path in Path(f"/proc/{pid}/task").iterdir()]
    for thread in threads:
        if thread != str(pid):
            children += Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
    return (int(fields[11]) + int(fields[12])) / _TICKS + sum(map(cpu_seconds, map(int, children)))


class Octavo:
    name = "octavo"

    def __init__(self, args: argparse.Namespace) -> None:
        options: dict[str, Any] = {"quantization": args.quantization} if args.quantization else {}
        self._llm = LLM(str(args.model), kv_cache_memory_bytes=256 << 20, num_threads=args.threads, **options)
        self._words = args.words
        self.pid = os.getpid()

    def text(self, sound: Path) -> str:
        [output] = self._llm.transcribe(sound, language="en", word_timestamps=self._words)
        return output.text

    def close(self) -> None:
        self._llm.close()


class Peer:
    name = "faster-whisper"

    def __init__(self, args: argparse.Namespace) -> None:
        python, model = args.peer
        command = [python, "-c", _PEER, model, args.peer_type, str(args.threads), "words" if args.words else ""]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def text(self, sound: Path) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{sound}\n")
        self._process.stdin.flush()
        return str(json.loads(self._line()))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def delayed(sound: Path, number: int, directory: Path) -> Path:
    """A file of the sound behind some thousandths of a second of silence."""
    samples, rate = soundfile.read(sound, dtype="float32", always_2d=True)
    target = directory / f"{sound.stem}-{number}.wav"
    soundfile.write(target, np.pad(samples, ((37 * number, 0), (0, 0))), rate)
    return target


def side_seconds(side: Octavo | Peer, sides: list[Octavo | Peer]) -> float:
    """The peer is a child of this process, and so is octavo's engine."""
    others = [other for other in sides if other is not side] if isinstance(side, Octavo) else []
    return cpu_seconds(side.pid) - sum(cpu_seconds(other.pid) for other in others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("sounds", nargs="+", metavar="SOUND=TEXT.txt")
    parser.add_argument("--quantization")
    parser.add_argument("--words", action="store_true", help="with times of words")
    parser.add_argument("--peer", nargs=2, metavar=("PYTHON", "DIRECTORY"))
    parser.add_argument("--peer-type", default="float32", help="of the peer's arithmetic")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    given = [each.partition("=") for each in args.sounds]
    sounds = [(Path(sound).resolve(), words(Path(text).read_text())) for sound, _, text in given]
    sides = [Octavo(args), *([Peer(args)] if args.peer else [])]
    scratch = Path(tempfile.mkdtemp(prefix="transcribe-"))
    best: dict[tuple[str, Path], tuple[float, float]] = {}
    errors: dict[tuple[str, Path], int] = {}
    for number in range(args.rounds):
        for sound, wanted in sounds:
            played = delayed(sound, number, scratch)
            for side in sides:
                started, before = time.monotonic(), side_seconds(side, sides)
                text = side.text(played)
                spent = time.monotonic() - started, side_seconds(side, sides) - before
                key = side.name, sound
                known = best.get(key, spent)
                best[key] = min(known[0], spent[0]), min(known[1], spent[1])
                errors[key] = num_errors(wanted, words(text))
    for side in sides:
        clock, cpus = (sum(best[side.name, sound][i] for sound, _ in sounds) for i in range(2))
        wrong, total = sum(errors[side.name, sound] for sound, _ in sounds), sum(len(text) for _, text in sounds)
        print(f"{side.name:15} {clock:7.2f} s of the clock {cpus:7.2f} s of CPUs  WER {100 * wrong / total:.1f} %")
        side.close()


if __name__ == "__main__":
    main()
