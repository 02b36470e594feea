"""A Redis or Valkey server for the length of a test, a benchmark or a notebook."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from typing_extensions import Self

_NAMES = ("redis-server", "valkey-server")
_CONFIG = """
bind 127.0.0.1
port {port}
unixsocket {socket_path}
unixsocketperm 600
dir {directory}
logfile {directory}/log
save ""
appendonly no
user {username} on >{password} ~{prefix}* &{prefix}* +@all -@admin -@dangerous
"""
_TLS = """
tls-port {tls_port}
tls-cert-file {certificate}
tls-key-file {directory}/tls.key
tls-ca-cert-file {certificate}
tls-auth-clients no
"""


class RedisServer:
    """A server that keeps everything in memory, and ends with the thread that has made it.

    ```python
    with RedisServer() as server:
        connector = RedisConnector("localhost", server.port)
    ```

    Whoever can open the port, or the socket (only this user can), may do everything: it
    listens on the loopback interface, and is for data that nobody would want to change.

    Args:
        extra: Further lines of its configuration, such as ``"maxmemory 10mb"``.

    Raises:
        FileNotFoundError: There is no ``redis-server`` or ``valkey-server``.
        RuntimeError: It does not start; the message ends with its log.

    Attributes:
        port: TCP port on 127.0.0.1.
        socket_path: Unix socket.
        tls_port: TCP port for TLS, as "localhost"; None if this server has no TLS.
        certificate: Certificate of `tls_port`, which is its own authority.
        username: A user who may use keys and channels that start with `prefix`, with no
            administrative commands.
        password: That user's.
        prefix: That user's.
        pid: Of the running server.
    """

    username = "app"
    prefix = "app:"

    def __init__(self, extra: str = "") -> None:
        self._binary = find_server()
        # Not in pytest's directory: a socket's path has at most 107 characters.
        self._directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None
        self.socket_path = str(self._directory / "sock")
        self.certificate = str(self._directory / "tls.crt")
        self.password = secrets.token_hex(16)
        self.port = 0
        self.tls_port: int | None = None
        try:
            has_tls = _make_certificate(self._directory)
            for attempt in range(5):  # somebody else may take the port first
                self.port = _free_port()
                self.tls_port = _free_port() if has_tls else None
                with contextlib.suppress(_NotStartedError):
                    self.start()
                    return
                has_tls = has_tls and attempt < 2  # this server may have been built without
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the server, which must be running."""
        assert self._process is not None, "the server is running"
        return self._process.pid

    def start(self) -> None:
        """Start the server, again after `kill`: empty, under the same addresses."""
        text = _CONFIG if self.tls_port is None else _CONFIG + _TLS
        fields = {"directory": self._directory, "prefix": self.prefix, "username": self.username}
        config = self._directory / "redis.conf"
        config.write_text(text.format(**fields, **vars(self)) + self._extra, encoding="utf-8")
        command = [self._binary, str(config)]
        # So that it ends with this thread and process, however they end.
        if sys.platform == "linux" and (setpriv := shutil.which("setpriv")):
            command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        log = self._directory / "log"
        with log.open("ab") as out:  # what it says before it knows of its own
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        deadline = time.monotonic() + 10
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                text = log.read_text(errors="replace")
                raise _NotStartedError(f"{self._binary} does not start:\n{text[-2000:]}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(1)
            sock.connect(self.socket_path)
            sock.sendall(b"PING\r\n")
            return sock.recv(100).startswith(b"+PONG")
        return False

    def kill(self) -> None:
        """End the server at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        Path(self.socket_path).unlink(missing_ok=True)

    def suspend(self) -> None:
        """Stop the server without ending it: connections stay, answers do not come."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `suspend`."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End the server and remove what it has written."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)


class _NotStartedError(RuntimeError):
    pass


def find_server() -> str:
    """Return the path of a server: ``$PROXYSTORE_REDIS_SERVER``, or the first one found.

    Raises:
        FileNotFoundError: There is none.
    """
    named = os.environ.get("PROXYSTORE_REDIS_SERVER")
    for name in [named] if named else _NAMES:
        found = shutil.which(name)
        if found is not None:
            return found
    raise FileNotFoundError(
        f"no {named or ' or '.join(_NAMES)} here: install one (Debian and Ubuntu: apt-get "
        f"install redis-server), or name one in PROXYSTORE_REDIS_SERVER"
    )


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _make_certificate(directory: Path) -> bool:
    openssl = shutil.which("openssl")
    if openssl is None:
        return False
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
            *("-keyout", str(directory / "tls.key"), "-out", str(directory / "tls.crt")),
        ],
        check=True,
        capture_output=True,
    )
    return True
