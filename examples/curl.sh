#!/bin/sh
# The API from a shell: sh curl.sh [http://localhost:8000]
set -eu
url=${1:-http://localhost:8000}
ask() { curl --silent --show-error --fail-with-body --no-buffer -H 'Content-Type: application/json' "$@"; echo; }

ask "$url/v1/models"
ask "$url/v1/chat/completions" -d '{"messages": [{"role": "user", "content": "Name three rivers."}], "max_tokens": 32}'
ask "$url/v1/completions" -d '{"prompt": "Once upon a time", "max_tokens": 16, "stream": true}'
ask "$url/tokenize" -d '{"prompt": "Once upon a time"}'
