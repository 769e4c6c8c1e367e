"""`python -m pipeinfer_cpp.workers stage|draft ADDRESS`: a process started by the coordinator."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pipeinfer_cpp.errors import PipeInferError, naming_options
from pipeinfer_cpp.net.messages import ModelRef
from pipeinfer_cpp.net.sockets import Network
from pipeinfer_cpp.system.threads import NO_MORE, refused
from pipeinfer_cpp.workers.lifeline import follow_parent


def _given_slice(
    model: ModelRef, first: int, end: int, report: Callable[[str, int, int], None]
) -> tuple[Path, Path]:
    """On the coordinator's own machine the path is right."""
    from pipeinfer_cpp.workers.resolve import slice_of

    return Path(model.path), slice_of(Path(model.path), first, end, report)


def main(role: str, address: str) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the coordinator's to handle
    try:
        follow_parent(Path(address.removeprefix("ipc://")).parent)
        network = Network()
        if role == "stage":
            from pipeinfer_cpp.workers.stage import Stage

            Stage(network, address, _given_slice, lambda text: None).serve()
        else:
            from pipeinfer_cpp.workers.draft import Draft

            Draft(network, address).serve()
    except PipeInferError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except RuntimeError as error:
        if not refused(error):
            raise
        print(NO_MORE, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with naming_options():
        sys.exit(main(*sys.argv[1:3]))
