"""POST /predict by LitServe: JSON with the picture in base64, which is what its requests are. One worker a core."""

import base64
import os
import sys

import litserve
from encoder import Encoder


class Embed(litserve.LitAPI):
    def setup(self, device):
        self.encoder = Encoder()

    def decode_request(self, request):
        return base64.b64decode(request["image"])

    def predict(self, data):
        return self.encoder.embed([data])[0]

    def encode_response(self, vector):
        return {"embedding": vector.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Embed(), accelerator="cpu", devices=1, workers_per_device=os.cpu_count(), timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="warning")
