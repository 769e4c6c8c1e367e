"""The worker processes of this machine, started before anything else: their start takes as long as all that
the coordinator has to read and to plan meanwhile."""

from __future__ import annotations

from pathlib import Path

from pipeinfer_cpp.cluster.launch import Process, SocketDir
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.options import Options
from pipeinfer_cpp.system.machine import Share, cores


class Crew:
    """Stages and a draft worker, as many as the options ask for here, that wait for their orders."""

    def __init__(self, share: Share, n_stages: int, draft: bool) -> None:
        self.share = share
        self.folder = SocketDir()
        self._waiting: dict[str, Process] = {}
        try:
            for name in [*(f"s{i}" for i in range(n_stages)), *(["draft"] if draft else [])]:
                self._waiting[name] = self.start(name)
        except BaseException:  # Ctrl-C comes at any moment
            self.close()
            raise

    @classmethod
    def of(cls, options: Options) -> Crew:
        """Nobody, where a model is not there or stages run elsewhere: the plan says what is wrong, or who is needed."""
        ready, draft = _asked(options)
        draft = draft and options.drafting
        n_stages = options.stages if isinstance(options.stages, int) and ready else 0
        return cls(Share(cores(), n_stages + draft, options.threads), n_stages, draft and n_stages > 0)

    def start(self, name: str) -> Process:
        """A process that listens at `address(name)`: the draft worker, or a stage."""
        role = "draft" if name == "draft" else "stage"
        log = self.folder.path / f"{name}.log"
        return Process(role, self.address(name), log, self.share.threads, self.share.crowded)

    def take(self, name: str, share: Share) -> Process:
        """The process of that name. One that was started for another share of the machine is started anew."""
        process = self._waiting.pop(name, None)
        if process is not None and (share.threads, share.crowded) == (self.share.threads, self.share.crowded):
            return process
        if process is not None:
            process.kill()
        self.share = share
        return self.start(name)

    def address(self, name: str) -> str:
        return self.folder.address(name)

    def close(self) -> None:
        """End those that nobody took, and remove the folder."""
        for process in self._waiting.values():
            process.kill()
        self._waiting.clear()
        self.folder.remove()


def _asked(options: Options) -> tuple[bool, bool]:
    """Whether the files of the models are there, and whether there is a draft."""
    given = [path for path in (options.target, None if options.ngram else options.draft) if path is not None]
    if options.pair is None or not all(Path(path).is_file() for path in given):
        return options.target is not None and all(Path(path).is_file() for path in given), options.draft is not None
    from pipeinfer_cpp.models import load_registry

    try:
        pair = load_registry(Path(options.models) if options.models else None).pair(options.pair)
        pair.path("target")
    except UserError:
        return False, False
    return True, options.draft is not None or pair.draft is not None
