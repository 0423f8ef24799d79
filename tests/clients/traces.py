"""Traces as a real OpenTelemetry receiver reads them: decoded by the official protobuf classes, field by field.

    python3 tests/clients/traces.py

Starts the built server with `--otlp-endpoint`, has it embed and search on behalf of a caller whose own span comes from
OpenTelemetry's Python SDK, and holds what arrives against what the protocol and the conventions ask for.
"""

import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from packages import within

within("traces", ["opentelemetry-proto==1.45.2", "opentelemetry-sdk==1.45.2"])

from google.protobuf.unknown_fields import UnknownFieldSet  # noqa: E402
from opentelemetry import propagate, trace  # noqa: E402
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: E402
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from serving import ROOT, served  # noqa: E402

requests = []


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        assert self.path == "/v1/traces", self.path
        assert self.headers["content-type"] == "application/x-protobuf"
        body = self.rfile.read(int(self.headers["content-length"]))
        requests.append(ExportTraceServiceRequest.FromString(body))
        reply = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


def unknown(message):
    """How many fields the official schema does not know, at any depth."""
    count = len(UnknownFieldSet(message))
    for field, value in message.ListFields():
        if field.message_type:
            single = hasattr(value, "ListFields")
            count += sum(map(unknown, [value] if single else value))
    return count


def attributes(of):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in of.attributes}


def ask(url, path, body, kind, headers):
    request = urllib.request.Request(url + path, body, {"content-type": kind, **headers})
    try:
        return urllib.request.urlopen(request, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


def main():
    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    picture = (ROOT / "examples/hat-1.jpg").read_bytes()
    tracer = TracerProvider().get_tracer("caller")
    with served("--otlp-endpoint", f"http://127.0.0.1:{receiver.server_port}") as url:
        with tracer.start_as_current_span("caller") as span:
            caller = span.get_span_context()
            headers = {}
            propagate.inject(headers)
            assert ask(url, "/embed", picture, "image/jpeg", {**headers, "x-request-id": "mine"}) == 200
            assert ask(url, "/embed", b"nonsense", "image/jpeg", {"x-request-id": "broken"}) == 415

    resources = [resource for request in requests for resource in request.resource_spans]
    assert resources and not any(map(unknown, requests)), "fields that the official schema does not know"
    for resource in resources:
        told = attributes(resource.resource)
        assert told["service.name"] == "latentd" and told["service.version"] and told["service.instance.id"]
        assert resource.schema_url.startswith("https://opentelemetry.io/schemas/")
    scopes = [scope for resource in resources for scope in resource.scope_spans]
    assert all(scope.scope.name == "latentd" for scope in scopes)
    spans = [span for scope in scopes for span in scope.spans]
    assert len({span.span_id for span in spans}) == len(spans)
    for span in spans:
        assert len(span.trace_id) == 16 and len(span.span_id) == 8 and any(span.span_id)
        assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano

    def of(request_id):
        return next(span for span in spans if attributes(span).get("latentd.request.id") == request_id)

    mine, broken = of("mine"), of("broken")
    assert mine.trace_id == caller.trace_id.to_bytes(16) and mine.parent_span_id == caller.span_id.to_bytes(8)
    assert mine.kind == Span.SPAN_KIND_SERVER and mine.name == "POST /embed"
    told = attributes(mine)
    assert told["http.response.status_code"] == 200 and told["http.route"] == "/embed", told
    parts = [span for span in spans if span.parent_span_id == mine.span_id]
    assert [span.name for span in parts] == ["body", "wait", "decode", "queue", "inference"], parts
    assert all(span.trace_id == mine.trace_id and span.kind == Span.SPAN_KIND_INTERNAL for span in parts)
    assert broken.status.code == Status.STATUS_CODE_UNSET and not broken.parent_span_id
    failed = next(span for span in spans if span.parent_span_id == broken.span_id and span.name == "picture")
    assert failed.status.code == Status.STATUS_CODE_ERROR and failed.status.message == "unsupported_format"
    took = {span.name: (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6 for span in [mine, *parts]}
    print(f"{len(spans)} spans, as the official schema reads them; ms: {took}")


if __name__ == "__main__":
    sys.exit(main())
