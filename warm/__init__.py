"""What `make repro` runs DVC in: a warm worker that stages are forked from, and a dvc.lock that a kill left mended.

A stage of a second of work pays several seconds of imports. Under `python -m warm COMMAND` (`dvc repro`, say) a
`python` comes first in PATH that hands `python -m stages...` to the worker and everything else to Python itself. DVC
runs its stages as ever, the command in dvc.lock is the same, and so is every artifact:

- the worker imports libraries only, on one thread, and never touches an accelerator; project code is imported by the
  child, so changes to it count at once;
- a child gets the caller's streams, folder, environment and umask; where the environment differs in what libraries
  read on import, Python starts the plain way, and says so;
- signals reach the child; it dies when its caller, the worker or the worker's owner dies; where the worker is gone,
  Python starts the plain way, unless the command that asked for it is gone as well.

Why not the fork server of multiprocessing: it serves the process that started it, not a shell's `python`; it imports
that process's main module in every child (3.4 s where that is a flow), and its children outlive a killed owner.
"""
