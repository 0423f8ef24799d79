"""Embeds two pictures and prints how alike they are: Python, with nothing but its standard library."""

import json
import os
import urllib.error
import urllib.request
from pathlib import Path

URL = os.environ.get("LATENTD_URL", "http://127.0.0.1:8080")
HERE = Path(__file__).parent


def embed(path: Path) -> list[float]:
    """The embedding of one picture; raises RuntimeError with the server's code and detail."""
    request = urllib.request.Request(
        f"{URL}/embed", data=path.read_bytes(), headers={"content-type": "image/jpeg"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["results"][0]["embedding"]
    except urllib.error.HTTPError as error:
        problem = json.load(error)
        raise RuntimeError(f"{problem['code']}: {problem['detail']}") from None


if __name__ == "__main__":
    one, two = embed(HERE / "outwear-1.jpg"), embed(HERE / "outwear-2.jpg")
    # Vectors have norm 1, so the cosine is the dot product.
    print(f"{sum(a * b for a, b in zip(one, two)):.4f}")
