"""OpenAI's own client against `POST /v1/embeddings`.

    python3 tests/clients/openai_api.py
"""

import base64
import json
import sys
import urllib.request

from packages import within

within("openai", ["openai==3.57.0", "numpy==2.4.6"])

import numpy  # noqa: E402
import openai  # noqa: E402
from serving import ROOT, served  # noqa: E402


def uri(name):
    return "data:image/jpeg;base64," + base64.b64encode((ROOT / f"examples/{name}.jpg").read_bytes()).decode()


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    sys.exit(f"this should have been refused with {kind.__name__}")


def main():
    with served() as url:
        check(url)


def check(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none is asked for", max_retries=0)
    info = json.load(urllib.request.urlopen(f"{url}/info"))["model"]
    name, dim = info["name"], info["dim"]
    pictures = [uri("hat-1"), uri("outwear-1")]
    # The client asks for base64 by itself and takes it apart.
    several = client.embeddings.create(model=name, input=pictures)
    assert several.object == "list" and several.model == name and several.usage.total_tokens == 0
    assert [one.index for one in several.data] == [0, 1]
    vectors = numpy.array([one.embedding for one in several.data])
    assert vectors.shape == (2, dim) and numpy.allclose(numpy.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    plain = client.embeddings.create(model=name.rsplit("-v", 1)[0], input=pictures[0], encoding_format="float")
    assert numpy.allclose(plain.data[0].embedding, vectors[0], atol=1e-6)
    body = json.dumps({"inputs": [{"image": pictures[0]}]}).encode()
    ours = urllib.request.urlopen(urllib.request.Request(f"{url}/embed", body, {"content-type": "application/json"}))
    assert numpy.allclose(json.load(ours)["results"][0]["embedding"], vectors[0], atol=1e-6)
    assert client.embeddings.create(model=name, input=pictures[0], dimensions=dim).data

    wrong = refused(openai.NotFoundError, lambda: client.embeddings.create(model="text-embedding-3", input=pictures))
    assert wrong.code == "model_not_found" and name in wrong.body["message"], wrong.body
    broken = lambda: client.embeddings.create(model=name, input=[pictures[0], "data:image/png;base64,AAAA"])  # noqa: E731
    error = refused(openai.UnprocessableEntityError, broken)
    assert error.code == "unsupported_format" and error.body["message"].startswith("picture 1:"), error.body
    refused(openai.BadRequestError, lambda: client.embeddings.create(model=name, input=pictures, dimensions=7))
    print(f"{dim} numbers of {name} through openai {openai.__version__}")


if __name__ == "__main__":
    sys.exit(main())
