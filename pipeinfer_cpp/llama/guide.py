"""What llguidance allows at a point of a text."""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.errors import FormLost, UserError
from pipeinfer_cpp.llama.pieces import Pieces
from pipeinfer_cpp.llama.schema import names_tokens, reason

_N_MASKS = 64  # that are remembered: 32 KiB each with a vocabulary of 262144

_FEW = 256  # that are checked one by one

_ENDED = -1
"""The point behind a token that ends the text: only such tokens may follow."""


class Guide:
    """A schema, regular expression or Lark grammar at one point of a text: which tokens it allows next.

    Clones share one matcher, which moves between their points by taking tokens back. Any thread may use a
    guide of its own. The first use makes tables of the vocabulary, a second or two with 262144 tokens.
    """

    def __init__(self, pieces: Pieces, text: str) -> None:
        """`text`: what `guided_text` returned. Raises UserError where it names tokens that are not there, or where no
        token ends a text. What llguidance refuses later than this is FormLost: it ends a turn only."""
        self._points = _Points(pieces, text)
        self._at = 0
        if names_tokens(text) or not pieces.eog.size:
            self._points.check()

    def allowed(self, ids: NDArray[Any]) -> NDArray[np.int32]:
        """Those of the token `ids` that may come next, in their order. A few are asked for one by one."""
        kept: NDArray[np.int32] = ids[self._points.allowed(self._at, ids)]
        return kept

    def all_allowed(self) -> NDArray[np.int32]:
        """All tokens that may come next, ascending."""
        mask = self._points.mask(self._at)
        bits = np.unpackbits(mask, count=self._points.n_vocab, bitorder="little")
        return np.flatnonzero(bits.view(np.bool_)).astype(np.int32)  # ten times as fast as of bytes

    def accept(self, token: int) -> bool:
        """Go on by `token`. False, and no change, when it is forbidden."""
        there = self._points.behind(self._at, token)
        if there is None:
            return False
        self._at = there
        return True

    def prepare(self) -> None:
        """Find out now what is allowed here: draws that wait for the matcher meanwhile go first."""
        self._points.prepare(self._at)

    def clone(self) -> Guide:
        other = object.__new__(Guide)
        other._points, other._at = self._points, self._at
        return other

    def close(self) -> None:
        pass


class _Points:
    """Points of a text by number (0: its beginning), and what is allowed there."""

    def __init__(self, pieces: Pieces, text: str) -> None:
        self.n_vocab = pieces.n_vocab
        self._pieces, self._text = pieces, text
        self._ends = frozenset(pieces.eog.tolist())
        self._gate = threading.Lock()  # a draw holds it while it waits for the matcher too: locks are not fair
        self._moving = threading.Lock()  # the matcher, which is slow
        self._matcher: Any = None
        self._stands = 0
        self._books = threading.Lock()  # what is known, which is quick
        self._points: list[tuple[int, int, int]] = [(-1, -1, 0)]  # point before, token, tokens up to here
        self._numbers: dict[tuple[int, int], int] = {}
        self._masks: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        ended = np.zeros((self.n_vocab + 31) // 32 * 4, np.uint8)
        for token in self._ends:
            ended[token >> 3] |= 1 << (token & 7)
        self._ended = ended

    def check(self) -> None:
        """Raise UserError where the vocabulary does not allow it."""
        with self._moving:
            try:
                self._open()
            except FormLost as error:
                raise UserError(str(error)) from None

    def behind(self, point: int, token: int) -> int | None:
        """The point that `token` leads to, or None where it is forbidden."""
        number = self._numbers.get((point, token))
        if number is not None:
            return number
        if not self.allowed(point, np.array([token]))[0]:
            return None
        if token in self._ends:
            return _ENDED
        with self._books:
            number = self._numbers.get((point, token))
            if number is None:
                number = len(self._points)
                self._points.append((point, token, self._points[point][2] + 1))
                self._numbers[point, token] = number
            return number

    def allowed(self, point: int, ids: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each of `ids` may follow. A single check takes about 1 us, a mask of 262144 tokens 7 to 2500 us."""
        mask = self._known(point)
        if mask is None and len(ids) > _FEW:
            mask = self.mask(point)
        if mask is not None:
            return np.asarray((mask[ids >> 3] >> (ids & 7).astype(np.uint8)) & 1 == 1)
        with self._gate, self._moving:
            self._go(point)
            forced = self._matcher.compute_ff_tokens()
            check, ends = self._matcher.validate_tokens, self._ends
            if forced:  # a mask has only the usual token of a text that is settled, a check takes its parts too
                found = [t == forced[0] for t in ids.tolist()]
            else:
                found = [
                    (t in ends and self._matcher.is_accepting()) or check([t]) == 1  # its check knows no ends
                    for t in ids.tolist()
                ]
            self._still_well()
            return np.array(found, np.bool_)

    def mask(self, point: int) -> NDArray[np.uint8]:
        """A bit for each token, the lowest first."""
        found = self._known(point)
        if found is None:
            with self._gate, self._moving:
                found = self._made(point)
        return found

    def prepare(self, point: int) -> None:
        """Make the mask, behind all draws that wait."""
        with self._gate:
            pass
        with self._moving:
            self._made(point)

    def _known(self, point: int) -> NDArray[np.uint8] | None:
        if point == _ENDED:
            return self._ended
        with self._books:
            found = self._masks.get(point)
            if found is not None:
                self._masks.move_to_end(point)
            return found

    def _made(self, point: int) -> NDArray[np.uint8]:
        found = self._known(point)
        if found is None:
            found = np.zeros_like(self._ended)
            self._go(point)
            self._matcher.unsafe_compute_mask_ptr(found.ctypes.data, found.nbytes)
            self._still_well()
            with self._books:
                self._masks[point] = found
                if len(self._masks) > _N_MASKS:
                    self._masks.popitem(last=False)
        return found

    def _open(self) -> None:
        if self._matcher is None:
            from llguidance import LLMatcher

            matcher = LLMatcher(tokenizer(self._pieces), self._text, log_level=0)
            if matcher.is_error():
                raise FormLost(f"invalid grammar: {reason(matcher.get_error())}.")
            self._matcher = matcher

    def _go(self, point: int) -> None:
        """Move the matcher: back to where the ways part, then on."""
        self._open()
        here, tokens, back = self._stands, [], 0
        target = point
        while here != target:
            if self._points[here][2] >= self._points[target][2]:
                here = self._points[here][0]
                back += 1
            else:
                target, token, _ = self._points[target]
                tokens.append(token)
        if back:
            self._matcher.rollback(back)
        if tokens:
            self._matcher.consume_tokens(tokens[::-1])
        self._still_well()
        self._stands = point

    def _still_well(self) -> None:
        if self._matcher.is_error():
            said = reason(self._matcher.get_error())
            self._matcher, self._stands = None, 0
            raise FormLost(f"The text cannot be kept to its form any further: {said}. Ask for a simpler form.")


_making = threading.Lock()


def tokenizer(pieces: Pieces) -> Any:
    """llguidance's tables of the vocabulary, made once for each `pieces`. Raises FormLost where no token ends one."""
    from llguidance import LLTokenizer

    from pipeinfer_cpp.llama.library import lib

    with _making:
        if pieces.guidance is None:
            ends = pieces.eog.tolist()
            if not ends:
                raise FormLost("This vocabulary has no token that ends a text, so its form cannot be asked for.")
            function = ctypes.cast(lib.llama_tokenize, ctypes.c_void_p).value
            make: Any = LLTokenizer
            pieces.guidance = make.from_llamacpp(
                tokens=pieces.marked(), vocab_ptr=pieces.vocab, tokenize_fptr=function, eos_token=ends, slices=None
            )
        return pieces.guidance
