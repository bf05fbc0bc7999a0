"""`octavo` with the fake model's engine process: `python fake_serve.py serve DIRECTORY ...`."""

from __future__ import annotations

import sys
from pathlib import Path

from octavo.cli import main
from octavo.launch import engine_process

engine_process.ENGINE_COMMAND = (sys.executable, str(Path(__file__).parent / "fake_engine.py"))

if __name__ == "__main__":
    sys.exit(main())
