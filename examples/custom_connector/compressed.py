"""A connector that keeps what another one would keep, compressed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proxystore.connectors.file import FileConnector, FileKey
from proxystore.serialize import BytesLike


class CompressedConnector:
    """Keeps each object as a compressed file, for where room is short and processors are not.

    Args:
        directory: As for `FileConnector`.
        level: From 1, quickest, to 9, smallest.
    """

    # `files` is, and there is no other state: threads of a store need not wait for each other.
    thread_safe = True

    def __init__(self, directory: str | Path, level: int = 1) -> None:
        if not 1 <= level <= 9:
            raise ValueError(f"level must be from 1 to 9, got {level}")
        self.files = FileConnector(directory)
        self.level = level

    def config(self) -> dict[str, Any]:
        return {"directory": self.files.store_dir, "level": self.level}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CompressedConnector:
        return cls(**config)

    def disown(self) -> None:
        """Delete nothing on `close`: called in processes that have this only for a proxy."""
        self.files.disown()

    def close(self, clear: bool | None = None) -> None:
        self.files.close(clear=clear)

    def put(self, obj: BytesLike) -> FileKey:
        return self.files.put(zlib.compress(obj, self.level))

    def put_batch(self, objs: Sequence[BytesLike]) -> list[FileKey]:
        return self.files.put_batch([zlib.compress(obj, self.level) for obj in objs])

    def get(self, key: FileKey) -> bytes | None:
        data = self.files.get(key)
        return None if data is None else zlib.decompress(data)  # b"" is data, None is no object

    def get_batch(self, keys: Sequence[FileKey]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def exists(self, key: FileKey) -> bool:
        return self.files.exists(key)

    def evict(self, key: FileKey) -> None:
        self.files.evict(key)
