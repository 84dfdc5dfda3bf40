"""Sharing caches with a team through a DVC remote: pull before a run, push after it, whatever happens in between.

python -m flows.share add URL     # a folder, ssh://host/path, s3://bucket/path
python -m flows.share pull | push

See docs/flows.md. SSH: DVC hands the agent on to the remote host and no setting of it says otherwise, so it is run
without one; keys come from the remote's `keyfile` or from ~/.ssh.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils import dict_sha256
from dvc.utils.serialize import load_yaml

from flows.graph import read_graph
from flows.instance import NOISE, PASSING
from zpruner.errors import InvalidSettingError, ZprunerError, without_credentials

RETRY_SECONDS = (2.0, 10.0, 60.0)
ENTRY = re.compile(r"[0-9a-f]{64}")
"""The name of an entry of the run cache: the SHA-256 of what it says."""


class RemoteError(ZprunerError):
    """Pulling from or pushing to the team's remote failed."""


@contextmanager
def shared(root: Path, log: Callable[[str], None], targets: Sequence[str]) -> Iterator[None]:
    """Pull what the remote has of the targets, run the block, and push what is finished even if the block failed."""
    check_remote(root)
    pull(root, log, *targets)
    try:
        yield
    finally:
        push(root, log, *targets)


def add(root: Path, name: str, url: str, endpoint: str | None = None) -> bool:
    """Make `url` the project's default remote, one that verifies every file that it delivers.

    Args:
        root: the project folder.
        name: what to call the remote.
        url: a folder, ssh://host/path or s3://bucket/path.
        endpoint: the address of an S3-compatible server; None: that of S3 itself.

    Returns:
        Whether an address holds a password or token: it is then written to `.dvc/config.local`, which git ignores, and
        `.dvc/config` has it without.

    Raises:
        InvalidSettingError: DVC does not know such a place.
    """
    addresses = {"url": url} | ({} if endpoint is None else {"endpointurl": endpoint})
    public = {key: without_credentials(address, mark="") for key, address in addresses.items()}
    secret = {key: address for key, address in addresses.items() if address != public[key]}
    with Repo(str(root)) as repo:
        mine = Path(repo.config.files["local"])
        before = mine.read_bytes() if mine.exists() else b""
        try:
            if before:
                with repo.config.edit("local", validate=False) as local:  # an address there wins over the one to come
                    for key in ("url", "endpointurl"):
                        local["remote"].get(name, {}).pop(key, None)
            with repo.config.edit("repo") as config:
                config["remote"][name] = {**public, "verify": True}
                config["core"]["remote"] = name
            if secret:
                mine.touch(mode=0o600)
                mine.chmod(0o600)
                with repo.config.edit("local") as local:
                    local["remote"][name] = {**local["remote"].get(name, {}), **secret}
        except DvcException as error:
            if before:
                mine.write_bytes(before)
            got, expected = f"{name} at {url} ({error})", "a folder, ssh://host/path or s3://bucket/path"
            raise InvalidSettingError("remote", got, expected, "Give another address.") from None
    return bool(secret)


def check_remote(root: Path) -> str:
    """Return the default remote's name.

    Raises:
        InvalidSettingError: there is none, or it does not verify what it delivers.
    """
    with Repo(str(root)) as repo:
        name = repo.config["core"].get("remote")
        verifies = name is not None and repo.config["remote"][name].get("verify")
    if name is None:
        raise InvalidSettingError(
            ".dvc/config", "no default remote", "a place to share", "Run `python -m flows.share add URL`."
        )
    if not verifies:
        raise InvalidSettingError(
            f"remote {name}",
            "verify off",
            "verify on, as a damaged file would be used unnoticed",
            f"Run `dvc remote modify {name} verify true`.",
        )
    return str(name)


def pull(root: Path, log: Callable[[str], None], *targets: str) -> list[str]:
    """Fetch the run cache, and what the remote has of the targets (of everything if none is named); link it into place.

    A file that the remote lacks, or has in a damaged state (DVC then removes it there), is no error: its stage runs
    again, and the next push puts it back. So with a damaged entry of the run cache.

    Returns:
        The outputs that did not arrive.
    """
    dvc(root, log, "pull", "--run-cache", "--allow-missing", *targets)
    drop_damaged_runs(root, log)
    graph = read_graph(root)
    asked = [graph[name] for name in graph.resolve(targets)] if targets else graph.values()
    names = [(one.name, out) for one in asked for out in one.outputs]
    missing = [(name, out) for name, out in names if not (root / out).exists()]
    for name, out in missing:
        log(f"{out} did not arrive: {name} will run unless its result is found elsewhere")
    return [out for _, out in missing]


def drop_damaged_runs(root: Path, log: Callable[[str], None]) -> None:
    """Remove entries of the run cache that are not what their name says, which DVC would use, here and in the remote.

    The stage of such an entry runs again, and the next push brings a whole one.
    """
    with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
        folder = Path(repo.stage_cache.cache_dir)
        remote = repo.cloud.get_remote_odb(None, "fetch --run-cache", hash_name="md5-dos2unix")
        for path in sorted(path for path in folder.glob("*/*/*") if ENTRY.fullmatch(path.name)):
            try:
                whole = dict_sha256(load_yaml(str(path)), exclude=["size", "nfiles"]) == path.name
            except (DvcException, AttributeError, TypeError):
                whole = False
            if whole:
                continue
            name = path.relative_to(folder)
            log(f"run cache: {name} is damaged and not used; its stage will run")
            path.unlink()
            with suppress(OSError):  # others beside it; an empty folder would stop DVC
                path.parent.rmdir()
            with suppress(FileNotFoundError):
                remote.fs.remove(remote.fs.join(remote.path, "runs", *name.parts))


def push(root: Path, log: Callable[[str], None], *targets: str) -> None:
    """Send the run cache, and the data that this dvc.lock has of the targets (of everything if none is named)."""
    dvc(root, log, "push", "--run-cache", *targets)


def dvc(root: Path, log: Callable[[str], None], *arguments: str) -> None:
    """Run a DVC command, again after a while if its failure can pass; its output goes to `log`.

    Raises:
        RemoteError: it failed.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
    for delay in (*RETRY_SECONDS, None):
        done = subprocess.run(
            command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        said = without_credentials(done.stdout).splitlines()
        lines = [line for line in said if line.strip() and not NOISE.match(line)]
        for line in lines:
            log(line)
        if done.returncode == 0:
            return
        if delay is None or not PASSING.search(done.stdout):
            break
        log(f"trying again in {delay:.0f} s")
        time.sleep(delay)
    raise RemoteError(
        f"dvc {' '.join(arguments)}",
        f"exit status {done.returncode} ({' '.join(lines[-3:])})",
        "every file to arrive",
        "Run it again once the remote can be reached: what has arrived is kept.",
    )


def main(arguments: list[str]) -> int:
    """Do one step by hand; returns the exit status."""
    parser = argparse.ArgumentParser("python -m flows.share", description="Share caches through a DVC remote.")
    steps = parser.add_subparsers(dest="step", required=True)
    adding = steps.add_parser("add", help="choose the remote")
    adding.add_argument("url", help="a folder, ssh://host/path or s3://bucket/path")
    adding.add_argument("--name", default="team", help="what to call it")
    adding.add_argument("--endpoint-url", metavar="URL", help="of an S3-compatible server")
    steps.add_parser("pull", help="fetch the run cache and the data of this dvc.lock")
    steps.add_parser("push", help="send them")
    options = parser.parse_args(arguments)
    root = Path.cwd()
    try:
        if options.step == "add":
            if add(root, options.name, options.url, options.endpoint_url):
                print(
                    "The password or token is in .dvc/config.local, readable by you alone and ignored by git; "
                    ".dvc/config has the address without it. Whoever shares the remote runs this with their own."
                )
        else:
            check_remote(root)
            step = pull if options.step == "pull" else push
            step(root, print)
    except (ZprunerError, DvcException) as error:
        print(f"error: {without_credentials(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
