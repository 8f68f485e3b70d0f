"""An import of a git repository ignores the user's git settings, except those for the connection.

Imported files have the bytes of the commit, and secrets are not shown or stored.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.host import Host
from tests.interop.test_import import files, git

ATTRIBUTES = "*.mine filter=mine\n*.lfs filter=lfs\n*.win text eol=crlf\n*.auto text=auto\n*.id ident\n"
TREE = {"a.txt": b"one\ntwo\n", "b.auto": b"x\n", "c.mine": b"plain\n", "d.lfs": b"lfs\n", "e.id": b"$Id$\n"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository whose .gitattributes sets filters and line endings."""
    needs("git")
    made = tmp_path / "team/net"
    made.mkdir(parents=True)
    git(made, "init", "-q", "-b", "trunk")
    for name, data in {".gitattributes": ATTRIBUTES.encode(), **TREE, "c.win": b"x\n"}.items():
        (made / name).write_bytes(data)
    (made / "run.sh").write_bytes(b"#!/bin/sh\n")
    (made / "run.sh").chmod(0o755)
    git(made, "add", ".")
    git(made, "commit", "-q", "-m", "one")
    return made


def imported(box: Host, url: str | Path, **environ: str) -> str:
    """Import a repository, and return the digest of the kit."""
    home = Path(environ.get("HOME", "/nonexistent"))
    done = box.kitfs(
        "import",
        url,
        "-t",
        "here/net:v1",
        "--json",
        env={"HOME": str(home), "XDG_CONFIG_HOME": str(home / "xdg"), **environ},
    )
    return str(json.loads(done.stdout.splitlines()[-1])["digest"])


SETTINGS = {
    "line ends": "[core]\n autocrlf = true\n eol = crlf\n safecrlf = true\n",
    "filters": (
        '[filter "mine"]\n smudge = tr a-z A-Z\n required = true\n'
        '[filter "lfs"]\n smudge = tr a-z A-Z\n process = false\n required = true\n'
    ),
    "a filter that is missing": '[filter "mine"]\n smudge = /none\n required = true\n',
    "files": (
        "[core]\n symlinks = false\n fileMode = false\n bigFileThreshold = 1\n sparseCheckout = true\n"
        " fsmonitor = /bin/false\n"
    ),
    "attributes": "[core]\n attributesFile = HOME/attributes\n",
    "a template": "[init]\n templateDir = HOME/template\n defaultBranch = ..\n",
    "hooks": "[core]\n hooksPath = HOME/template/hooks\n",
    "formats": (
        "[init]\n defaultObjectFormat = sha256\n defaultRefFormat = reftable\n"
        "[log]\n showSignature = true\n[color]\n ui = always\n"
    ),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_of_the_user_do_not_change_an_import(
    box: Host, repository: Path, tmp_path: Path, settings: str
) -> None:
    """Nothing in ~/.gitconfig changes the bytes or the modes of a kit."""
    home = tmp_path / "home"
    (home / "template/hooks").mkdir(parents=True)
    (home / "template/info").mkdir()
    (home / "attributes").write_text("* text eol=crlf\n")
    (home / "template/info/attributes").write_text("* text eol=crlf\n")
    (home / "template/config").write_text("[core]\n\tautocrlf = true\n")
    (home / "template/hooks/post-checkout").write_text("#!/bin/sh\necho hooked > a.txt\n")
    (home / "template/hooks/post-checkout").chmod(0o755)
    neutral = imported(box, repository)
    (home / ".gitconfig").write_text(settings.replace("HOME", str(home)))
    assert imported(box, repository, HOME=str(home)) == neutral
    found = files(box, "here/net:v1")
    assert {name: found[name] for name in TREE} == TREE | {"e.id": found["e.id"]}
    assert (found["c.win"], found["e.id"][:4]) == (b"x\r\n", b"$Id:")  # as the repository's own configuration says


@pytest.mark.parametrize(
    "environ",
    [
        {"GIT_DIR": "/nonexistent"},
        {"GIT_WORK_TREE": "/nonexistent", "GIT_INDEX_FILE": "/nonexistent", "GIT_COMMON_DIR": "/nonexistent"},
        {"GIT_OBJECT_DIRECTORY": "/nonexistent", "GIT_NAMESPACE": "x", "GIT_SHALLOW_FILE": "/nonexistent"},
        {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.autocrlf", "GIT_CONFIG_VALUE_0": "true"},
        {"GIT_CONFIG_COUNT": "x"},
        {"GIT_CONFIG_PARAMETERS": "'core.autocrlf'='true'"},
        {"GIT_DEFAULT_HASH": "sha256", "GIT_TEMPLATE_DIR": "/nonexistent", "GIT_TRACE": "1"},
    ],
)
def test_variables_of_git_do_not_change_an_import(box: Host, repository: Path, environ: dict[str, str]) -> None:
    """If a git hook runs kitfs, the environment variables that git sets do not change the kit."""
    assert imported(box, repository, **environ) == imported(box, repository)


def test_the_umask_does_not_change_an_import(box: Host, repository: Path) -> None:
    """Files of a kit have the same modes under any umask."""
    neutral = imported(box, repository)
    before = os.umask(0o077)
    try:
        assert imported(box, repository) == neutral
    finally:
        os.umask(before)


@pytest.mark.parametrize("default", ["sha1", "sha256"])
@pytest.mark.parametrize("made", ["sha1", "sha256"])
def test_repositories_of_either_object_format(box: Host, tmp_path: Path, made: str, default: str) -> None:
    """A branch and a commit can be imported, whether the repository has SHA-1 or SHA-256 object names."""
    needs("git")
    where = tmp_path / made
    where.mkdir()
    git(where, "init", "-q", "-b", "trunk", f"--object-format={made}")
    (where / "a.bin").write_bytes(b"weights")
    git(where, "add", ".")
    git(where, "commit", "-q", "-m", "one")
    for ref in ("trunk", git(where, "rev-parse", "HEAD").strip()):
        box.kitfs("import", where, "--ref", ref, "-t", "here/net:v1", env={"GIT_DEFAULT_HASH": default})
        assert files(box, "here/net:v1")["a.bin"] == b"weights"


def test_rewritten_urls_are_followed(box: Host, repository: Path, tmp_path: Path) -> None:
    """An import follows url.*.insteadOf in the user's settings, for example to a mirror."""
    (tmp_path / ".gitconfig").write_text(f'[url "file://{repository.parent}/"]\n insteadOf = https://git.example/\n')
    imported(box, "https://git.example/net", HOME=str(tmp_path))
    assert files(box, "here/net:v1")["a.txt"] == TREE["a.txt"]


class _Web(ThreadingHTTPServer):
    """A web server that serves a directory and requires a login.

    ``asked`` lists the Authorization header of each request.
    """

    def __init__(self, root: Path, login: str) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.root = root
        self.wanted = "Basic " + base64.b64encode(login.encode()).decode()
        self.asked: list[str | None] = []


class _Request(BaseHTTPRequestHandler):
    server: _Web

    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        self.server.asked.append(given)
        place = self.server.root / self.path.partition("?")[0].lstrip("/")
        status = 401 if given != self.server.wanted else 200 if place.is_file() else 404
        data = place.read_bytes() if status == 200 else f"Authorization: {given}".encode()
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def web(repository: Path, tmp_path: Path) -> Iterator[_Web]:
    git(tmp_path, "clone", "-q", "--bare", str(repository), str(tmp_path / "www/net.git"))
    git(tmp_path / "www/net.git", "update-server-info")
    server = _Web(tmp_path / "www", "ada:p@ss/word")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_login_in_a_url_is_used_and_not_stored(box: Host, web: _Web, tmp_path: Path) -> None:
    """A login in a URL is only sent to the server.

    No message, Kitfile, manifest or file of the store contains the login, and the user's credential store does not
    either.
    """
    (tmp_path / ".gitconfig").write_text(f"[credential]\n helper = store --file={tmp_path}/kept\n")
    url = f"http://ada:p%40ss%2Fword@127.0.0.1:{web.server_port}/net.git"
    done = box.kitfs("import", url, "-t", "here/net:v1", env={"HOME": str(tmp_path)}, check=False)
    assert web.wanted in web.asked  # a dumb server cannot send a single commit, so the import fails here
    shown = done.stdout + done.stderr + box.kitfs("list", "--json").stdout
    stored = b"".join(path.read_bytes() for path in box.cache.rglob("*") if path.is_file())
    for secret in ("p%40ss", "p@ss", web.wanted.removeprefix("Basic ")):
        assert secret not in shown
        assert secret.encode() not in stored
    assert not (tmp_path / "kept").exists()


def test_a_refused_login_is_not_shown(box: Host, web: _Web) -> None:
    """The error for a refused login does not contain the login, even if the response of the server does."""
    for login, args in (("ada:hunter22@", ()), ("", ("--token", "hunter22"))):
        url = f"http://{login}127.0.0.1:{web.server_port}/net.git"
        done = box.kitfs("import", url, "-t", "here/net:v1", *args, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (3, 1)
        assert "hunter22" not in done.stdout + done.stderr
