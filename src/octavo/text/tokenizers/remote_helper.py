"""Runs the tokenizer of a model's own code, in a process of its own: `python -m octavo.text.tokenizers.remote_helper`.

The code is a stranger's, which the operator trusts (--trust-remote-code) to be run, not to end or to be quick. Whoever
started this process may kill it at any moment; the next one loads the tokenizer again.

Frames on stdin and on what was stdout: what the code prints goes to stderr. In: {load, code_revision}, then {encode,
special} or {decode, skip}. Out: a description, {ids}, {text}, or {error}, with `unloaded` where nothing was loaded yet.
"""

from __future__ import annotations

import os
import signal
from typing import Any, Final

from octavo.base.frames import serve_frames

#: More than whoever asks would wait.
MAX_SECONDS: Final = 150


def _description(tokenizer: Any) -> dict[str, Any]:
    vocab = {token: i for token, i in tokenizer.get_vocab().items() if isinstance(token, str)}
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)}
    special = set(tokenizer.all_special_ids)
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {
        "vocab": vocab,
        "size": len(tokenizer),
        "special_tokens": names,
        "special_ids": sorted(special | {i for i, token in added.items() if token.special}),
        "added": {str(i): str(token.content) for i, token in added.items()},
        "eos": tokenizer.eos_token_id,
        "chat_template": tokenizer.chat_template,
        "max_length": tokenizer.model_max_length,
    }


class _Handler:
    def __init__(self) -> None:
        self._tokenizer: Any = None

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        # If nobody is left to kill it, the kernel does, in the middle of any call.
        signal.alarm(MAX_SECONDS)
        reply = self._answer(request)
        signal.alarm(0)
        return reply

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            if "load" in request:
                return self._load(request["load"], request["code_revision"])
            if self._tokenizer is None:
                return {"error": "it was stopped", "unloaded": True}
            if "encode" in request:
                ids = self._tokenizer.encode(request["encode"], add_special_tokens=request["special"])
                return {"ids": [int(i) for i in ids]}
            text = self._tokenizer.decode(
                request["decode"], skip_special_tokens=request["skip"], clean_up_tokenization_spaces=False
            )
            return {"text": text}
        except Exception as error:  # noqa: BLE001 (a stranger's code: whatever it raises is told)
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}

    def _load(self, path: str, code_revision: str | None) -> dict[str, Any]:
        try:
            from transformers import AutoTokenizer
        except ImportError:
            return {"error": "the package transformers is not installed, which the model's own code needs"}
        if self._tokenizer is None:  # two texts may find a new helper
            options = {} if code_revision is None else {"code_revision": code_revision}
            self._tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True, **options)
        return _description(self._tokenizer)


def main() -> None:
    # A terminal sends INT to the whole group; this process ends when its input does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    frames_out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve_frames(_Handler(), frames_out)


if __name__ == "__main__":
    main()
