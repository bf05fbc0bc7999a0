"""`python -m octavo.entrypoints.openai.run_batch -i FILE -o FILE --model M ...` is `octavo run-batch ...`."""

from __future__ import annotations

import sys

from octavo.cli import main

if __name__ == "__main__":
    sys.exit(main(["run-batch", *sys.argv[1:]]))
