"""When the next run leaves, what it carries, and how far the draft worker may run ahead."""

from __future__ import annotations

from pipeinfer_cpp.engine.drafts import Drafts
from pipeinfer_cpp.engine.governor import Governor
from pipeinfer_cpp.engine.pipe import Pipe
from pipeinfer_cpp.engine.policy import Calibration, Cutoff
from pipeinfer_cpp.engine.selection import select
from pipeinfer_cpp.engine.settings import Settings
from pipeinfer_cpp.engine.tree import Node, Tree


class Speculation:
    """The policy of the three modes for one slot. It decides, and sends nothing itself."""

    def __init__(
        self, settings: Settings, pipe: Pipe, drafts: Drafts, calibration: Calibration, governor: Governor
    ) -> None:
        """What the draft's confidence is worth and whether speculation pays is learnt by all slots together."""
        self._settings, self._pipe, self._pace, self._drafts = settings, pipe, pipe.pace, drafts
        self.calibration, self.governor = calibration, governor
        self.cutoff = Cutoff(settings.cutoff, settings.recovery, settings.decay)
        self._look_again = 0.0
        """When drafts that were not sure enough are looked at again."""

    @property
    def speculates(self) -> bool:
        governed = self.governor.speculate or not self._settings.governor
        return self._settings.mode != "off" and self._drafts.alive and governed

    def root_run(self, tree: Tree, last_row: int, taken: int = 0) -> list[Node]:
        """The root with the drafts known below it, for a run in which `taken` rows are others'; empty while it
        must wait."""
        settings, root = self._settings, tree.root
        if not settings.on("multibuffer") and self._pipe.in_flight:
            return []  # one sequence: what is dead in it must be out of the pipe first
        if settings.mode == "async":
            return self._select(tree, last_row, taken) if self.speculates else [root]
        if settings.mode == "off" or not self._drafts.alive:
            return [root]
        known = [node for node in root.subtree() if node.pos <= last_row]
        whole = 1 + max(min(self._sync_length, last_row - root.pos, settings.max_rows - 1 - taken), 0)
        if len(known) < whole and known[-1].token not in settings.eog:
            return []  # the draft is not complete
        return [node for node in known if node.token not in settings.eog][:whole]

    def next_run(self, tree: Tree, last_row: int, now: float) -> tuple[list[Node], float | None]:
        """A speculative run, if one should leave now; else when to ask again, if time alone may change that."""
        if self._settings.mode != "async" or not self.speculates or tree.root.run is None or self._pipe.full:
            return [], None
        if not self._settings.on("continuous") and any(f.speculative for f in self._pipe.in_flight.values()):
            return [], None
        early = self._pace.early(now)
        if early > 1e-6:
            return [], now + max(early, 1e-4)
        nodes = self._select(tree, last_row)
        if nodes:
            self.cutoff.sent()
            return nodes, None
        return [], self._refused(tree, last_row, now)

    def _refused(self, tree: Tree, last_row: int, now: float) -> float | None:
        """A run could leave now and only the cutoff holds it back. It is lowered once in the time that a draft
        takes, as the authors' is with each attempt at one. Returns when to look again."""
        eog = self._settings.eog
        waits = any(n is not tree.root and n.pos <= last_row and n.token not in eog for n in tree.frontier())
        if not waits or not self.cutoff.decay:
            return None
        if now >= self._look_again:
            self.cutoff.refused()
            self._look_again = now + max(self._drafts.worker.interval or self._pace.bottleneck(1), 1e-3)
        return self._look_again

    def forks(self, second: int, prob: float) -> bool:
        """The draft is unsure: its second choice goes along."""
        threshold = self._settings.split + self.cutoff.shift
        return self._settings.mode == "async" and prob >= threshold and 0 <= second not in self._settings.eog

    def room(self, tree: Tree, last_row: int, now: float, prefilling: bool) -> int:
        """The position that the draft worker may draft up to: what the pipeline can hold by the time it is there."""
        root = tree.root.pos
        if self._settings.mode == "sync":
            return min(root + self._sync_length, last_row)
        if not self.speculates:
            return root
        if not self._settings.on("draft-ahead"):
            waits = any(node is not tree.root for node in tree.frontier())
            if waits or prefilling or self._pace.early(now) > 0:
                return root
            return min(max(node.pos for node in tree.root.subtree()) + 1, last_row)
        return min(root + self._drafts.ahead(self._pace.latency(1)), last_row)

    def _select(self, tree: Tree, last_row: int, taken: int = 0) -> list[Node]:
        return select(
            tree.root,
            pace=self._pace,
            calibration=self.calibration,
            level=self.cutoff.level,
            max_rows=self._settings.max_rows - taken,
            last_row=last_row,
            eog=self._settings.eog,
        )

    @property
    def _sync_length(self) -> int:
        return min(self._settings.draft_max, self._settings.max_rows - 1)
