"""Ctrl-C at every kind of moment: one sentence that is true, status 130, OUT whole or as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

INTERRUPT = """
import json, os, pathlib, shutil, signal, sys, tempfile
import typer
import zpruner.__main__, zpruner.cli, zpruner.checkpoint, zpruner.evaluate
import zpruner.pruning.in_memory, zpruner.pruning.opening

def at(holder, name, when=lambda *_: True, after=False):
    do = getattr(holder, name)
    def interruptible(*given, **more):
        done = do(*given, **more) if after else None
        if when(*given):
            signal.raise_signal(signal.SIGINT)
        return done if after else do(*given, **more)
    setattr(holder, name, interruptible)

MOMENTS = {
    "starting": lambda: at(zpruner.cli, "keep_freed_memory"),
    "loading": lambda: at(zpruner.pruning.opening, "load_model"),
    "calibrating": lambda: at(zpruner.pruning.in_memory, "calibrate"),
    "pruning": lambda: at(zpruner.pruning.in_memory, "prune"),
    "writing": lambda: at(zpruner.checkpoint, "write_manifest"),
    "renaming": lambda: at(pathlib.Path, "rename", lambda path, _: path.name == ".out.tmp"),
    "renamed": lambda: at(pathlib.Path, "rename", lambda path, _: path.name == ".out.tmp", after=True),
    "measuring": lambda: at(zpruner.evaluate, "window_losses"),
    "printed": lambda: at(typer, "echo", lambda text, **_: text == "out" or "perplexity" in text, after=True),
    "ending": lambda: at(zpruner.__main__, "settle"),
}
moments = json.load(sys.stdin)
try:  # what is imported once need not be in every child
    zpruner.cli.main(moments[0][0].split())
except SystemExit:
    shutil.rmtree("out")
found = []
for words, moment, there in moments:
    out = pathlib.Path("out")
    if there:
        out.mkdir()
        (out / "config.json").write_text("before")
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 2)
            sys.argv = ["zpruner", *words.split()]
            MOMENTS[moment]()
            zpruner.__main__.main()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        files = sorted(path.name for path in out.glob("*"))
        found.append([code, said.read(), files, sorted(os.listdir())])
    shutil.rmtree(out, ignore_errors=True)
print(json.dumps(found), file=sys.stderr)
"""
"""Forks a command for every moment, at which it gets SIGINT, and tells what came of it."""

EVALUATE = "evaluate source/model --text source/text.txt --seqlen 32 --windows 2"
PRUNE = "prune source/model --calibration source/text.txt --nsamples 2 --seqlen 32 --method magnitude -o out"
WHOLE = 7
"""Files of a checkpoint."""
MOMENTS = [
    *((PRUNE, moment, False) for moment in ("starting", "loading", "calibrating", "pruning", "writing")),
    *((f"{PRUNE} --force", moment, True) for moment in ("writing", "renaming")),
    *((PRUNE, moment, False) for moment in ("renamed", "printed", "ending")),
    *((EVALUATE, moment, False) for moment in ("loading", "measuring", "printed", "ending")),
]


def test_ctrl_c(place: Path) -> None:
    command = [sys.executable, "-c", INTERRUPT]
    # On one thread: OpenMP's others would not be there in the children, who would wait for them.
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    asked = json.dumps(MOMENTS)
    done = subprocess.run(command, input=asked, cwd=place, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stderr)
    assert [(said, len(files)) for _, said, files, _ in told] == [
        ("Interrupted.\n", 0),
        *[("Interrupted; OUT was not written.\n", 0)] * 4,
        *[("Interrupted; OUT was not written.\n", 1)] * 2,  # as it was before
        *[("Interrupted; OUT was written, and is whole.\n", WHOLE)] * 2,
        ("Interrupted; all was done.\n", WHOLE),
        *[("Interrupted.\n", 0)] * 3,
        ("Interrupted; all was done.\n", 0),
    ]
    assert {code for code, *_ in told} == {130}
    for _, _, files, left in told:
        assert left == (["out"] if files else []) + ["params.yaml", "source"]
