"""What vLLM takes, as one table: every flag and variable, its defaults, and what octavo does when it is given.

The parser (`octavo.cli.foreign`), the check of the environment, `docs/from-vllm.md` and the tests are made from it. A
flag that is a field of octavo's configuration needs no more here than its defaults.
"""

from octavo.cli.vllm.engine_rows import ENGINE_ROWS
from octavo.cli.vllm.row import Row, Values, Variable
from octavo.cli.vllm.server_rows import SERVER_ROWS
from octavo.cli.vllm.today_rows import TODAY_ROWS
from octavo.cli.vllm.variables import VARIABLES

ROWS: tuple[Row, ...] = (*SERVER_ROWS, *ENGINE_ROWS, *TODAY_ROWS)

__all__ = ["ENGINE_ROWS", "ROWS", "SERVER_ROWS", "TODAY_ROWS", "VARIABLES", "Row", "Values", "Variable"]
