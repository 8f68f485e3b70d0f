"""Read objects in S3 that a Kitfile names as datasets: ``s3://bucket/key[?versionId=…]``, with the ETag as remoteHash.

Objects are read with boto3, which is an optional dependency (``pip install 'kitfs[s3]'``) and finds credentials, region
and endpoint by its own rules. The ETag is compared before the first byte is read, and sent as If-Match. If the ETag is
the MD5 of the bytes (for objects that were uploaded in one part and without a KMS key), the bytes are also verified.
Threading: each call uses one thread.
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
from kitfs.layers.builder import raw_index
from kitfs.layers.index import LayerIndex
from kitfs.openfile import PIECE
from kitfs.ops.unpack.content import Content, CountBytes
from kitfs.ops.unpack.progress import Stopped
from kitfs.ops.unpack.safe_directory import write_all
from kitfs.redaction import redacted
from kitfs.registry.proxies import proxy_for

MD5: Final = re.compile("[0-9a-f]{32}")


def _client() -> Any:
    """Make boto3's client with the proxy that kitfs chooses, because botocore reads NO_PROXY differently."""
    boto3 = importlib.import_module("boto3")
    client = boto3.client("s3")
    if not any(name.lower() in ("http_proxy", "https_proxy") for name in os.environ):
        return client
    config = importlib.import_module("botocore.config")
    endpoint = httpx.URL(client.meta.endpoint_url)
    proxy = proxy_for(endpoint, os.environ)
    return boto3.client("s3", config=config.Config(proxies={endpoint.scheme: proxy} if proxy else {}))


def _describe(e: Exception) -> str:
    """Describe an error of boto3 without the secrets that a response or the URL of an endpoint can contain."""
    response = getattr(e, "response", None)
    if isinstance(response, dict) and isinstance(response.get("Error"), dict):
        status = (response.get("ResponseMetadata") or {}).get("HTTPStatusCode", "an error")
        code = response["Error"].get("Code", "no error code")
        return f"S3 returned {status} to {getattr(e, 'operation_name', 'the request')} ({code})"
    return "the endpoint is not a URL" if isinstance(e, httpx.InvalidURL) else redacted(str(e))


class ObjectContent:
    """The ContentSource of an object, which is written to the file ``path``.

    The constructor raises UsageError if the URL does not name an object, the ETag is missing, or boto3 is not
    installed.
    """

    kind: Final = "dataset"

    def __init__(self, url: str, etag: str, path: str) -> None:
        parts = urlsplit(url)
        self._url = url
        self._etag = etag.strip('"')
        self.path: str | None = path
        self._where = {"Bucket": parts.netloc, "Key": parts.path.removeprefix("/")}
        if not (parts.scheme == "s3" and all(self._where.values()) and self._etag):
            raise UsageError(
                f"{url}: expected s3://bucket/key, and the ETag of the object as remoteHash in the Kitfile"
            )
        if version := parse_qs(parts.query).get("versionId"):
            self._where["VersionId"] = version[0]
        try:
            self._client: Any = _client()
            self._failure: Any = importlib.import_module("botocore.exceptions")
        except ImportError:
            raise UsageError(f"{url}: reading from S3 needs boto3; run: pip install 'kitfs[s3]'")
        except Exception as e:  # noqa: BLE001 - boto3's own settings raise classes that are not known here
            raise UsageError(f"{url}: cannot set up boto3: {_describe(e)}")
        self._size = 0

    @property
    def digest(self) -> str:
        """The ETag, which is used instead of a digest."""
        return self._etag

    def fetches(self) -> int:
        """Return 0, because an object is read while it is written."""
        return 0

    def index(self, count: CountBytes, stop: threading.Event, room: int) -> LayerIndex:
        """Return an index of one file.

        Raises RegistryError if S3 returns an error, and IntegrityError if the ETag differs.
        """
        with self.s3_errors():
            head = self._client.head_object(**self._where)
            self._check(str(head["ETag"]))
            self._size = int(head["ContentLength"])
        return raw_index(self.path or "", self._size, 0o644)

    def open(self, count: CountBytes, stop: threading.Event, *, kept: int = 0) -> Content:
        """Open the object for one read from beginning to end. Raises RegistryError, IntegrityError."""
        with self.s3_errors():
            response = self._client.get_object(**self._where, IfMatch=f'"{self._etag}"')
            self._check(str(response["ETag"]))
        plain = MD5.fullmatch(self._etag) is not None and response.get("ServerSideEncryption", "AES256") == "AES256"
        md5 = self._etag if plain and "SSECustomerAlgorithm" not in response else ""
        return _ObjectStream(self, response["Body"], md5, count, stop)

    def _check(self, etag: str) -> None:
        if etag.strip('"') != self._etag:
            raise IntegrityError(f"{self._url}: its ETag is {etag}, but the Kitfile's remoteHash is {self._etag}")

    @contextmanager
    def s3_errors(self) -> Iterator[None]:
        """Translate errors of boto3 and invalid responses in the block into RegistryError."""
        try:
            yield
        except (self._failure.BotoCoreError, self._failure.ClientError) as e:
            raise RegistryError(f"{self._url}: {_describe(e)}", url=self._url)
        except (KeyError, ValueError) as e:
            raise RegistryError(f"{self._url}: not a valid response of S3 ({type(e).__name__})", url=self._url)


class _ObjectStream:
    """The content of an object, which is hashed while it is read. ``md5`` is "" if its MD5 is unknown."""

    verified: Final = False
    resumable: Final = False

    def __init__(self, source: ObjectContent, stream: Any, md5: str, count: CountBytes, stop: threading.Event) -> None:
        self._source = source
        self._stream = stream
        self._md5 = md5
        self._hasher = hashlib.md5(usedforsecurity=False)
        self._count = count
        self._stop = stop

    def take(self, fd: int, offset: int, at: int, size: int) -> int:
        """Use no bytes of an earlier run, and return 0: the object is read from its beginning."""
        return 0

    def copy(self, at: int, size: int, fd: int, offset: int) -> None:
        """Copy the next ``size`` bytes to ``offset`` of the file ``fd``. The whole object is one extent."""
        while size:
            if self._stop.is_set():
                raise Stopped
            with self._source.s3_errors():
                data = self._stream.read(min(size, PIECE))
            if not data:
                raise IntegrityError(f"{self._source.path}: the object ends {size} bytes before its declared size")
            self._hasher.update(data)
            write_all(fd, data, offset)
            offset, size = offset + len(data), size - len(data)
            self._count(len(data))

    def finish(self) -> bool:
        """Return True. Raises IntegrityError if the bytes do not have the MD5 that the ETag states."""
        actual = self._hasher.hexdigest()
        if self._md5 and actual != self._md5:
            raise IntegrityError(f"{self._source.path}: the object has the MD5 {actual}, but its ETag is {self._md5}")
        return True

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()
