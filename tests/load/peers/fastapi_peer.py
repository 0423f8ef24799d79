"""POST /embed by FastAPI under uvicorn: the raw body is the picture. One worker process a core."""

import anyio.to_thread
import orjson
from encoder import Encoder
from fastapi import FastAPI, Request, Response

app = FastAPI()
encoder = Encoder()


@app.get("/ready")
def ready():
    return {"ready": True}


@app.post("/embed")
async def embed(request: Request):
    data = await request.body()
    vectors = await anyio.to_thread.run_sync(encoder.embed, [data])
    body = orjson.dumps({"embedding": vectors[0]}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")
