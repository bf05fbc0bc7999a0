"""An MCP server over stdio that keeps to the protocol's letter and to nothing else: run as a program.

It answers everything twice, with lines between that are no messages; lists one tool under one name again and again, on
pages that do not end if its argument is `endless`; and repeats the key of its environment to whoever calls.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def tool(description: str) -> dict[str, Any]:
    return {"name": "odd", "description": description, "inputSchema": {"type": "object", "title": "x" * 300}}


def main() -> None:
    num_pages = 0
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        if message["method"] == "initialize":
            version = message["params"]["protocolVersion"]
            about = {"name": "odd", "version": "1"}
            reply["result"] = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": about}
        elif message["method"] == "tools/list":
            num_pages += 1
            reply["result"] = {"tools": [tool("first"), tool("second")]}
            if num_pages < 3 or sys.argv[1:] == ["endless"]:
                reply["result"]["nextCursor"] = str(num_pages)
        else:
            reply["error"] = {"code": -32010, "message": f"the key {os.environ['ODD_KEY']} is not known"}
        for _ in range(2):
            print(json.dumps(reply), "no message", sep="\n", flush=True)


if __name__ == "__main__":
    main()
