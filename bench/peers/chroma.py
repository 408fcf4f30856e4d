"""The Chroma server. Asked over plain HTTP connections that stay open: its own client costs more than the server."""

from __future__ import annotations

import json
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from bench.peers.base import ASKED, COLLECTION, Peer, Question

JSON = {"Content-Type": "application/json"}


class Server(Peer):
    packages = ("chromadb==1.5.9",)
    what = "Chroma 1.5 server, HNSW; get the vector, then query, over HTTP connections kept open"
    efforts = (20, 50, 100, 200, 400, 1000)

    def serve(self) -> list[str]:
        program = str(Path(sys.executable).with_name("chroma"))
        return [program, "run", "--path", str(self.home / "d"), "--host", "127.0.0.1", "--port", str(self.port)]

    def client(self) -> Any:
        import chromadb

        settings = chromadb.Settings(anonymized_telemetry=False)
        return chromadb.HttpClient(host="127.0.0.1", port=self.port, settings=settings)

    def ready(self) -> None:
        self.client().heartbeat()

    def load(self) -> None:
        client = self.client()
        configuration = {"hnsw": {"space": "l2", "ef_construction": 100, "max_neighbors": 16, "ef_search": 100}}
        events = client.create_collection(COLLECTION, configuration=configuration, embedding_function=None)
        size = min(2_000, client.get_max_batch_size())
        names, metadata = self.data.names, [{"event": text} for text in self.data.metadata]
        for at in range(0, len(names), size):
            here = slice(at, at + size)
            events.add(ids=names[here], embeddings=self.data.vectors[here].tolist(), metadatas=metadata[here])

    def tune(self, effort: int) -> None:
        events = self.client().get_collection(COLLECTION, embedding_function=None)
        events.modify(configuration={"hnsw": {"ef_search": effort}})

    def connect(self, effort: int) -> Question:
        identity = self.client().get_collection(COLLECTION, embedding_function=None).id
        path = f"/api/v2/tenants/default_tenant/databases/default_database/collections/{identity}"
        connection, names = HTTPConnection("127.0.0.1", self.port), self.data.names

        def post(what: str, body: dict[str, Any]) -> bytes:
            connection.request("POST", f"{path}/{what}", json.dumps(body), JSON)
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise RuntimeError(f"Chroma said {response.status}: {text[:200]!r}")
            return text

        def ask(i: int) -> bytes:
            found = json.loads(post("get", {"ids": [names[i]], "include": ["embeddings"]}))
            question = {"query_embeddings": found["embeddings"], "n_results": ASKED, "include": ["metadatas"]}
            return post("query", question)

        return ask

    def names(self, answer: Any) -> list[str]:
        found: list[str] = json.loads(answer)["ids"][0]
        return found
