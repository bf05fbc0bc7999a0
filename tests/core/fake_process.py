"""The engine process with the fake model: `python fake_process.py --fd N`."""

import sys

from core.fake import FakeExecutor, info
from octavo.core.process import main

if __name__ == "__main__":
    sys.exit(main(make_executor=lambda config, on_phase: FakeExecutor(info())))
