"""Triton's own client against the Open Inference Protocol under `/v2`.

    python3 tests/clients/triton.py
"""

import base64
import json
import sys
import urllib.request

from packages import within

within("triton", ["tritonclient[http]==2.73.0", "numpy==2.4.6"])

import numpy  # noqa: E402
import tritonclient.http as triton  # noqa: E402
from serving import ROOT, served  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402


def main():
    with served() as url:
        check(url)


def tensor(files, binary, shape=None):
    made = triton.InferInput("image", shape or [len(files)], "BYTES")
    if not binary:
        # In JSON a picture is text.
        files = [base64.b64encode(file) for file in files]
    made.set_data_from_numpy(numpy.array(files, dtype=object).reshape(shape or [len(files)]), binary_data=binary)
    return made


def refused(call):
    try:
        call()
    except InferenceServerException as error:
        return error.message()
    sys.exit("this should have been refused")


def check(url):
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    full_name = json.load(urllib.request.urlopen(f"{url}/info"))["model"]["name"]
    name, version = full_name.rsplit("-v", 1)
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(name) and client.is_model_ready(name, version) and client.is_model_ready(full_name)
    assert not client.is_model_ready("another") and not client.is_model_ready(name, "99")
    assert client.get_server_metadata()["name"] == "latentd"
    told = client.get_model_metadata(name)
    assert told["versions"] == [version] and told["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    [output] = told["outputs"]
    assert output["name"] == "embedding" and output["datatype"] == "FP32" and output["shape"][0] == -1
    dim = output["shape"][1]

    files = [(ROOT / f"examples/{picture}.jpg").read_bytes() for picture in ["hat-1", "outwear-1"]]
    everything = client.infer(name, [tensor(files, True)], request_id="mine")
    vectors = everything.as_numpy("embedding")
    reply = everything.get_response()
    assert reply["id"] == "mine" and reply["model_name"] == name and reply["model_version"] == version
    assert vectors.shape == (2, dim) and vectors.dtype == numpy.float32
    assert numpy.allclose(numpy.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for binary_input, binary_output in [(True, False), (False, True), (False, False)]:
        outputs = [triton.InferRequestedOutput("embedding", binary_data=binary_output)]
        again = client.infer(name, [tensor(files, binary_input)], outputs=outputs, model_version=version)
        assert numpy.allclose(again.as_numpy("embedding"), vectors, atol=1e-6), (binary_input, binary_output)
    batch = client.infer(full_name, [tensor(files, True, [2, 1])])
    assert numpy.allclose(batch.as_numpy("embedding"), vectors, atol=1e-6)
    body = json.dumps({"inputs": [{"image": base64.b64encode(files[0]).decode()}]}).encode()
    ours = urllib.request.urlopen(urllib.request.Request(f"{url}/embed", body, {"content-type": "application/json"}))
    assert numpy.allclose(json.load(ours)["results"][0]["embedding"], vectors[0], atol=1e-6)

    assert "picture 1" in refused(lambda: client.infer(name, [tensor([files[0], b"nonsense"], True)]))
    assert full_name in refused(lambda: client.infer("another", [tensor(files, True)]))
    wrong = triton.InferInput("pixels", [1], "FP32")
    wrong.set_data_from_numpy(numpy.zeros(1, dtype=numpy.float32))
    assert "BYTES" in refused(lambda: client.infer(name, [wrong]))
    print(f"{dim} numbers of {full_name} through tritonclient")


if __name__ == "__main__":
    sys.exit(main())
