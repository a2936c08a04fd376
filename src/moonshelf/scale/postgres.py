"""A collection as a table of PostgreSQL with the vector extension (pgvector), by psycopg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moonshelf.catalogue.rows import FIELDS
from moonshelf.errors import UserError

_INDEXED = 2_000  # dimensions that pgvector's HNSW takes; longer vectors are scanned
_COLUMNS = ("key", "vector", "id", "title", "price", "hash", *FIELDS)


class Postgres:
    """A table of its own, in `url`'s database; each call is one transaction. In its SQL only the table's name
    is not ours, and that is quoted by libpq."""

    def __init__(self, url: str, collection: str, dim: int) -> None:
        import psycopg
        from pgvector.psycopg import register_vector
        from psycopg.sql import Identifier

        self._connection: Any = psycopg.connect(url, autocommit=True, application_name="moonshelf")
        try:
            self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.Error as error:
            raise UserError(
                f"the database lacks the extension vector ({str(error).splitlines()[0]}): install pgvector "
                "on its server, or have its owner run CREATE EXTENSION vector."
            ) from None
        register_vector(self._connection)
        self._table = Identifier(collection).as_string(self._connection)
        fields = ", ".join(f"{name} text[]" for name in FIELDS)
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS {self._table} (key bigint PRIMARY KEY, vector vector({int(dim)}) "
            f"NOT NULL, id text NOT NULL, title text, price double precision, hash text, {fields})"
        )
        size = "SELECT atttypmod FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'vector'"
        self.dim = max(0, *self._connection.execute(size, [self._table]).fetchall()[0])
        if self.dim <= _INDEXED:
            index = Identifier(f"{collection}_vector"[-63:]).as_string(self._connection)
            how = f"CREATE INDEX IF NOT EXISTS {index} ON {self._table} USING hnsw (vector vector_ip_ops)"
            self._connection.execute(how)

    def upsert(self, ids: np.ndarray, vectors: np.ndarray, metadata: Sequence[Mapping[str, Any]]) -> None:
        rows = [
            [key, vector, *(one[name] for name in _COLUMNS[2:])]
            for key, vector, one in zip(ids.tolist(), vectors, metadata, strict=True)
        ]
        places, new = (
            ", ".join("%s" for _ in _COLUMNS),
            ", ".join(f"{n} = EXCLUDED.{n}" for n in _COLUMNS[1:]),
        )
        put = f"INSERT INTO {self._table} ({', '.join(_COLUMNS)}) VALUES ({places})"
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(f"{put} ON CONFLICT (key) DO UPDATE SET {new}", rows)

    def delete(self, ids: np.ndarray) -> None:
        self._connection.execute(f"DELETE FROM {self._table} WHERE key = ANY(%s)", [ids.tolist()])

    def count(self) -> int:
        return int(self._connection.execute(f"SELECT count(*) FROM {self._table}").fetchone()[0])

    def hashes(self) -> dict[int, str]:
        rows = self._connection.execute(f"SELECT key, coalesce(hash, '') FROM {self._table}")
        return dict(rows.fetchall())
