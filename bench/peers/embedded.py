"""Stores without a server, asked in process: no socket is in their figures."""

from __future__ import annotations

from typing import Any

from bench.peers.base import ASKED, COLLECTION, DIM, Peer, Question

BATCH = 2_000


class Lance(Peer):
    packages = ("lancedb==0.40.0", "pyarrow==26.0.1", "numpy==2.4.6")
    what = "LanceDB, IVF_FLAT of 316 lists, a BTREE over the ids; in process"
    embedded = True
    efforts = (1, 4, 8, 16, 32, 64)

    def load(self) -> None:
        import lancedb
        import pyarrow as pa

        vectors = pa.FixedSizeListArray.from_arrays(pa.array(self.data.vectors.reshape(-1)), DIM)
        rows = pa.table({"id": self.data.names, "metadata": self.data.metadata, "vector": vectors})
        table = lancedb.connect(str(self.home / "d")).create_table(COLLECTION, rows)
        table.create_scalar_index("id")
        table.create_index(metric="l2", index_type="IVF_FLAT", num_partitions=316, vector_column_name="vector")
        self.table = table

    def connect(self, effort: int) -> Question:
        table, names = self.table, self.data.names

        def ask(i: int) -> Any:
            own = table.search().where(f"id = '{names[i]}'").select(["vector"]).limit(1).to_arrow()
            vector = own["vector"].combine_chunks().values.to_numpy()
            return table.search(vector).nprobes(effort).select(["id", "metadata"]).limit(ASKED).to_arrow()

        return ask

    def names(self, answer: Any) -> list[str]:
        found: list[str] = answer["id"].to_pylist()
        return found


class Qdrant(Peer):
    packages = ("qdrant-client==1.20.0", "numpy==2.4.6")
    what = "Qdrant's local mode, exact, in memory; in process"
    embedded = True

    def load(self) -> None:
        from qdrant_client import QdrantClient
        from qdrant_client.models import Distance, PointStruct, VectorParams

        self.store = QdrantClient(":memory:")
        self.store.create_collection(COLLECTION, VectorParams(size=DIM, distance=Distance.EUCLID))
        for at in range(0, len(self.data.names), BATCH):
            points = [
                PointStruct(
                    id=i, vector=self.data.vectors[i].tolist(),
                    payload={"name": self.data.names[i], "metadata": self.data.metadata[i]},
                )
                for i in range(at, min(at + BATCH, len(self.data.names)))
            ]  # fmt: skip
            self.store.upsert(COLLECTION, points)

    def connect(self, effort: int) -> Question:
        return lambda i: self.store.query_points(COLLECTION, query=i, limit=ASKED, with_payload=True)

    def names(self, answer: Any) -> list[str]:
        return [point.payload["name"] for point in answer.points]


class Milvus(Peer):
    packages = ("milvus-lite==3.2.2", "pymilvus==3.0.2", "numpy==2.4.6")
    what = "Milvus Lite, HNSW M 16; get the vector, then search; in process"
    embedded = True
    efforts = (16, 64, 256, 1000)

    def load(self) -> None:
        from pymilvus import DataType, MilvusClient

        self.store = MilvusClient(str(self.home / "m.db"))
        schema = MilvusClient.create_schema()
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=200)
        schema.add_field("metadata", DataType.VARCHAR, max_length=65_535)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIM)
        index = MilvusClient.prepare_index_params()
        index.add_index("vector", index_type="HNSW", metric_type="L2", params={"M": 16, "efConstruction": 100})
        self.store.create_collection(COLLECTION, schema=schema, index_params=index)
        for at in range(0, len(self.data.names), BATCH):
            rows = zip(
                self.data.names[at : at + BATCH], self.data.metadata[at : at + BATCH],
                self.data.vectors[at : at + BATCH], strict=True,
            )  # fmt: skip
            self.store.insert(COLLECTION, [{"id": n, "metadata": m, "vector": v} for n, m, v in rows])
        self.store.flush(COLLECTION)
        self.store.load_collection(COLLECTION)

    def connect(self, effort: int) -> Question:
        names, store = self.data.names, self.store

        def ask(i: int) -> Any:
            own = store.get(COLLECTION, [names[i]], output_fields=["vector"])
            return store.search(
                COLLECTION, [own[0]["vector"]], limit=ASKED, output_fields=["metadata"],
                search_params={"params": {"ef": effort}},
            )  # fmt: skip

        return ask

    def names(self, answer: Any) -> list[str]:
        return [hit["id"] for hit in answer[0]]
