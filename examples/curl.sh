#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A completion, a chat and a streamed chat with nothing but curl:
#   API_KEY=... ./curl.sh http://h20-01:8000 deepseek-v3
set -euo pipefail
url=${1:-http://127.0.0.1:8000} model=${2:-deepseek-v3}

post() { # the key goes by a file descriptor: on the command line every user of the machine would see it
  curl --silent --show-error --fail --no-buffer "$url$1" --header 'Content-Type: application/json' --data "$2" \
    --header @<(echo "Authorization: Bearer ${API_KEY:-}")
  echo
}

post /v1/completions '{"model": "'"$model"'", "prompt": "A short history of computing:", "max_tokens": 32}'
post /v1/chat/completions '{"model": "'"$model"'", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}'
post /v1/chat/completions '{"model": "'"$model"'", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32, "stream": true}'
