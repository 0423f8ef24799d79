#!/bin/sh
# Puts the example pictures into a collection and finds the neighbours of one, with curl.
set -eu
url=${LATENTD_URL:-http://127.0.0.1:8080}
cd "$(dirname "$0")"

for file in *.jpg; do
  curl -sSf -X PUT -H 'content-type: image/jpeg' --data-binary "@$file" "$url/items/${file%.jpg}?collection=examples" > /dev/null
done

curl -sSf -X POST -H 'content-type: image/jpeg' --data-binary @outwear-2.jpg "$url/search?collection=examples&k=3"
echo
