#!/bin/sh
# Embeds pictures in the three body forms, with curl.
set -eu
url=${LATENTD_URL:-http://127.0.0.1:8080}
cd "$(dirname "$0")"

# One picture: the file as the body.
curl -sSf -H 'content-type: image/jpeg' --data-binary @outwear-1.jpg "$url/embed"
echo

# Several pictures: a multipart form. Each has its own result.
curl -sSf -F 'image=@outwear-1.jpg' -F 'image=@shoes-1.jpg' "$url/embed"
echo

# JSON: base64 or data URIs.
printf '{"inputs":[{"image":"%s"}]}' "$(base64 < outwear-1.jpg | tr -d '\n')" |
  curl -sSf -H 'content-type: application/json' --data-binary @- "$url/embed?encoding=base64"
echo
