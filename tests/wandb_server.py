"""As much of a W&B server as one run needs: it knows everybody, and writes down what it is told."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VIEWER = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}


class WandbServer:
    """`runs` are the runs it was told of, in order, as variables of the mutation; `history` the
    logged rows by run id. After `die` its port refuses."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def die(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            run_id, files = path.split("/")[-2], json.loads(body).get("files") or {}
            rows = files.get("wandb-history.jsonl", {}).get("content", [])
            self.history.setdefault(run_id, []).extend(map(json.loads, rows))
        if path != "/graphql":
            return {}
        query = json.loads(body)
        given = query.get("variables") or {}
        match query.get("operationName"):
            case "Viewer":
                return {"data": {"viewer": VIEWER}}
            case "RunResumeStatus":
                return {"data": {"model": {"id": "p", "name": "p", "bucket": None}}}
            case "UpsertBucket":
                self.runs.append(given)
                project = {"id": "p", "name": "p", "entity": {"id": "u", "name": "me"}}
                bucket = {"id": "r", "name": given["name"], "project": project}
                return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
            case "CreateRunFiles":
                return {
                    "data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}
                }
        return {"data": {}}

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            """HTTP/1.0: no connection outlives its request, nor the server."""

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                found = json.dumps(server.answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(found)))
                self.end_headers()
                self.wfile.write(found)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
