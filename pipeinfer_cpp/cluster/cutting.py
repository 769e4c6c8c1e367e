"""The slices of the stages on this machine, cut in one pass while the workers start."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from pipeinfer_cpp.gguf import LayerRange, Source, cached_slices
from pipeinfer_cpp.system.reports import Report


class _Given(Exception):
    """Nobody waits for it any more."""


class Cutting:
    """Makes sure that the cache has the slices, in a thread. The model's hash is known behind it where `hashed` or
    anything had to be cut. `report` is called from that thread, with a stage's name and what is being done."""

    def __init__(
        self, source: Source, stages: Sequence[tuple[str, LayerRange]], hashed: bool, report: Report | None
    ) -> None:
        self._source, self._hashed, self._report = source, hashed, report
        self._names = [name for name, _ in stages]
        self._ranges = [layers for _, layers in stages]
        self._error: BaseException | None = None
        self._given_up = False
        self._thread = threading.Thread(target=self._work, name="cutting", daemon=True)
        self._thread.start()

    def done(self) -> bool:
        """Raises what went wrong."""
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True

    def close(self) -> None:
        """Give up what is not finished."""
        self._given_up = True
        self._thread.join(1.0)  # not for ever: it may wait for another process that cuts the same model

    def _work(self) -> None:
        try:
            if self._ranges:
                cached_slices(self._source, self._ranges, progress=self._read, each=self._wrote)
            if self._hashed:
                self._source.sha256(self._hash)
        except _Given:
            pass
        except BaseException as error:
            self._error = error

    def _read(self, done: int, total: int) -> None:
        if self._given_up:
            raise _Given

    def _wrote(self, index: int, done: int, total: int) -> None:
        if self._report:
            self._report(self._names[index], "cutting the slice", done, total)

    def _hash(self, done: int, total: int) -> None:
        self._read(done, total)
        if self._report:
            self._report("coordinator", "hashing the model", done, total)
