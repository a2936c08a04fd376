"""What OpenSearch and Elasticsearch answer to the few requests that a push makes, as their references say.

No server can be had in the tests; this keeps documents of one process, and breaks off when it is told to.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Engine:
    """`indices`: name -> {"mapping", "docs"}. `fail_after` bulk requests connections are dropped; `refuse`
    is the `_id` of a document that the mapping does not take."""

    def __init__(self) -> None:
        self.indices: dict[str, dict[str, Any]] = {}
        self.fail_after: int | None = None
        self.refuse: str | None = None
        self.bulks = 0
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if engine.fail_after is not None and engine.bulks >= engine.fail_after:
                    self.close_connection = True
                    return self.connection.close()
                status, reply = engine.answer(self.command, self.path.partition("?")[0].strip("/"), body)
                data = json.dumps(reply).encode()
                self.send_response(status)
                form = self.headers.get("Accept", "application/json").split(",")[0]
                self.send_header("Content-Type", form if "json" in form else "application/json")
                self.send_header("X-Elastic-Product", "Elasticsearch")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        name, _, what = path.partition("/")
        if path == "":
            return 200, {"version": {"number": "9.0.0", "build_flavor": "default"}, "tagline": "You Know"}
        if name == "_bulk" or what == "_bulk":
            return 200, self.bulk([json.loads(line) for line in body.splitlines() if line.strip()])
        if path.startswith("_search/scroll"):
            return 200, {"_scroll_id": "1", "hits": {"hits": []}, "_shards": SHARDS}
        if name not in self.indices and not (method == "PUT" and not what):
            return 404, {"error": {"reason": f"no such index [{name}]"}, "status": 404}
        if method == "PUT":
            self.indices[name] = {"mapping": json.loads(body)["mappings"], "docs": {}}
            return 200, {"acknowledged": True, "index": name}
        index = self.indices[name]
        if what == "_mapping":
            return 200, {name: {"mappings": index["mapping"]}}
        if what == "_count":
            return 200, {"count": len(index["docs"]), "_shards": SHARDS}
        if what == "_search":
            asked = json.loads(body or b"{}")
            if "knn" in asked or "knn" in asked.get("query", {}):
                return 200, self.nearest(index, asked)
            hits = [{"_id": id, "_source": {"hash": doc.get("hash")}} for id, doc in index["docs"].items()]
            return 200, {"_scroll_id": "1", "hits": {"hits": hits}, "_shards": SHARDS}
        return 200, {}

    def bulk(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        self.bulks += 1
        items, at = [], 0
        while at < len(lines):
            ((what, head),) = lines[at].items()
            docs, id = self.indices[head["_index"]]["docs"], head["_id"]
            if what == "delete":
                status = 200 if docs.pop(id, None) else 404
                items.append({what: {"_id": id, "status": status}})
                at += 1
                continue
            doc = lines[at + 1]
            unknown = doc.keys() - self.indices[head["_index"]]["mapping"]["properties"].keys()
            if unknown or id == self.refuse:  # the mapping is strict
                error = {"type": "strict_dynamic_mapping_exception", "reason": f"not allowed: {unknown}"}
                items.append({what: {"_id": id, "status": 400, "error": error}})
            else:
                docs[id] = doc
                items.append({what: {"_id": id, "status": 201}})
            at += 2
        return {"errors": any("error" in next(iter(i.values())) for i in items), "items": items, "took": 1}

    def nearest(self, index: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        """Both dialects of a kNN query, with their filter by terms."""
        knn = asked.get("knn") or asked["query"]["knn"]["vector"]
        query, k = knn.get("query_vector") or knn["vector"], knn["k"]
        filters = knn.get("filter") or {}
        terms = [term for one in [filters] if one for term in one["term"].items()]
        hits = [
            {
                "_id": id,
                "_score": sum(x * y for x, y in zip(query, doc["vector"], strict=True)),
                "_source": doc,
            }
            for id, doc in index["docs"].items()
            if all(value in doc[name] for name, value in terms)
        ]
        return {"hits": {"hits": sorted(hits, key=lambda hit: -hit["_score"])[:k]}, "_shards": SHARDS}


SHARDS = {"total": 1, "successful": 1, "skipped": 0, "failed": 0}
