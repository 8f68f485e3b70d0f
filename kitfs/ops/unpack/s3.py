"""Objects of S3 that a Kitfile names as datasets: ``s3://bucket/key[?versionId=…]``, whose ``remoteHash`` is the
object's ETag.

Spoken by boto3, which is an extra (``pip install 'kitfs[s3]'``) and finds credentials, region and endpoint by its own
rules. The ETag is compared before the first byte, and asked for with If-Match; where it is the MD5 of the bytes
(objects in one piece, without a key of KMS) the bytes are compared too. Threading: none of its own.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import httpx

from kitfs.errors import IntegrityError, RegistryError, UsageError
from kitfs.layers.index import LayerIndex, raw_index
from kitfs.openfile import PIECE
from kitfs.ops.unpack.content import Body, Moved, Stopped
from kitfs.ops.unpack.safe_directory import put
from kitfs.redaction import redacted
from kitfs.registry.proxies import proxy_for

MD5: Final = re.compile("[0-9a-f]{32}")


def _client() -> Any:
    """boto3's client, behind the proxy that every other connection takes: botocore reads NO_PROXY otherwise than Go."""
    boto3 = importlib.import_module("boto3")
    client = boto3.client("s3")
    if not any(name.lower() in ("http_proxy", "https_proxy") for name in os.environ):
        return client
    config = importlib.import_module("botocore.config")
    endpoint = httpx.URL(client.meta.endpoint_url)
    proxy = proxy_for(endpoint, os.environ)
    return boto3.client("s3", config=config.Config(proxies={endpoint.scheme: proxy} if proxy else {}))


def _words(e: Exception) -> str:
    """What boto3 says, less what an answer or an endpoint's URL may hold of a secret."""
    told = getattr(e, "response", None)
    if isinstance(told, dict) and isinstance(told.get("Error"), dict):
        status = (told.get("ResponseMetadata") or {}).get("HTTPStatusCode", "an error")
        return f"S3 answers {status} to {getattr(e, 'operation_name', 'it')} ({told['Error'].get('Code', 'without a code')})"
    return "its endpoint is not a URL" if isinstance(e, httpx.InvalidURL) else redacted(str(e))


class ObjectContent:
    """An object as the one file at ``path``. Raises UsageError for what is no such URL, or without boto3."""

    kind: Final = "dataset"

    def __init__(self, url: str, etag: str, path: str) -> None:
        parts = urlsplit(url)
        self._url = url
        self._etag = etag.strip('"')
        self.path: str | None = path
        self._where = {"Bucket": parts.netloc, "Key": parts.path.removeprefix("/")}
        if not (parts.scheme == "s3" and all(self._where.values()) and self._etag):
            raise UsageError(f"{url}: not an object of S3 with its ETag as remoteHash (s3://bucket/key)")
        if version := parse_qs(parts.query).get("versionId"):
            self._where["VersionId"] = version[0]
        try:
            self._client: Any = _client()
            self._failure: Any = importlib.import_module("botocore.exceptions")
        except ImportError:
            raise UsageError(f"{url}: reading from S3 needs boto3: pip install 'kitfs[s3]'")
        except Exception as e:  # noqa: BLE001 - boto3's own settings, told by classes that are not known here
            raise UsageError(f"{url}: boto3 cannot be set up: {_words(e)}")
        self._size = 0

    @property
    def digest(self) -> str:
        """The ETag."""
        return self._etag

    def fetches(self) -> int:
        """Nothing before it is written."""
        return 0

    def index(self, moved: Moved, stop: threading.Event, room: int) -> LayerIndex:
        """One file. Raises RegistryError when it cannot be had, IntegrityError when its ETag is another."""
        with self._told():
            head = self._client.head_object(**self._where)
            self._check(str(head["ETag"]))
            self._size = int(head["ContentLength"])
        return raw_index(self.path or "", self._size, 0o644)

    def body(self, moved: Moved, stop: threading.Event) -> Body:
        """The bytes, on their way."""
        with self._told():
            answer = self._client.get_object(**self._where, IfMatch=f'"{self._etag}"')
            self._check(str(answer["ETag"]))
        plain = MD5.fullmatch(self._etag) is not None and answer.get("ServerSideEncryption", "AES256") == "AES256"
        return _Object(
            self, answer["Body"], self._etag if plain and "SSECustomerAlgorithm" not in answer else "", moved, stop
        )

    def _check(self, etag: str) -> None:
        if etag.strip('"') != self._etag:
            raise IntegrityError(f"{self._url}: its ETag is {etag}, the Kitfile's remoteHash {self._etag}")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (self._failure.BotoCoreError, self._failure.ClientError) as e:
            raise RegistryError(f"{self._url}: {_words(e)}", url=self._url)
        except (KeyError, ValueError) as e:
            raise RegistryError(f"{self._url}: not an answer of S3 ({type(e).__name__})", url=self._url)


class _Object:
    """The bytes of an object, hashed on their way; ``md5`` "" when nothing says what it should be."""

    verified: Final = False

    def __init__(self, supply: ObjectContent, stream: Any, md5: str, moved: Moved, stop: threading.Event) -> None:
        self._supply = supply
        self._stream = stream
        self._md5 = md5
        self._hasher = hashlib.md5(usedforsecurity=False)
        self._moved = moved
        self._stop = stop

    def copy(self, at: int, size: int, fd: int, offset: int) -> None:
        """All of it, once."""
        while size:
            if self._stop.is_set():
                raise Stopped
            with self._supply._told():  # noqa: SLF001 - one thing in two classes
                data = self._stream.read(min(size, PIECE))
            if not data:
                raise IntegrityError(f"{self._supply.path}: the object ends before its {size} last bytes")
            self._hasher.update(data)
            put(fd, data, offset)
            offset, size = offset + len(data), size - len(data)
            self._moved(len(data))

    def finish(self) -> None:
        """Raises IntegrityError when the bytes are not those of the ETag."""
        if self._md5 and self._hasher.hexdigest() != self._md5:
            raise IntegrityError(f"{self._supply.path}: the object's bytes have another MD5 than its ETag {self._md5}")

    def close(self) -> None:
        """Let go of the connection."""
        self._stream.close()
