"""Exit code 0 when the server in this container is healthy. HEALTH_URL is its address, if it is another one."""

import http.client
import os
import ssl
import sys
from urllib.parse import urlsplit

url = urlsplit(os.environ.get("HEALTH_URL") or "http://127.0.0.1:8000/health")
connection: http.client.HTTPConnection
if url.scheme == "https":
    # The server's name is not that of the loopback address: nothing is sent, so nobody need be who they say.
    context = ssl._create_unverified_context()
    connection = http.client.HTTPSConnection(url.hostname or "", url.port, timeout=5, context=context)
else:
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=5)
try:
    connection.request("GET", url.path or "/health")
    status = connection.getresponse().status
except OSError as exc:
    sys.exit(f"{url.geturl()}: {exc}")
sys.exit(0 if status == 200 else f"{url.geturl()}: status {status}")
