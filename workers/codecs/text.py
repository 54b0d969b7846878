"""Text to token ids, for training and serving alike: one tokenizer, one windowing rule, one padding rule.

Knows nothing of labels, tasks or models, and imports neither torch nor transformers: inference uses it too.
All offsets count Python characters (code points).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

# JSON may carry half of a surrogate pair; it is not text, and the tokenizer refuses it. One character for one
# character, so that offsets stay true.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_WORD = re.compile(r"\w+|[^\w\s]")

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TextRow:
    """One text as token ids, special tokens included; `offsets[i]` is piece i's [start, end)."""

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a word list that fits the model.

    `first_piece` holds (word index, position in `ids`) of the words this window speaks for. Over all windows
    of a list each word occurs exactly once, in the window that gives it most context; words without any piece
    (control characters, say) occur nowhere.
    """

    ids: list[int]
    first_piece: list[tuple[int, int]]


class TextCodec:
    """A `tokenizer.json` bound to a length. Thread-safe after construction.

    Truncation and padding stored in the file (MiniLM says 128) are dropped: `max_length` alone decides. Names
    of special tokens inside a text ("[SEP]") are plain text: no caller can forge a boundary.
    """

    def __init__(self, tokenizer_file: Path, *, max_length: int, pad_token_id: int) -> None:
        """`max_length` counts tokens, special tokens included. ValueError when it leaves no room for text."""
        self.max_length = max_length
        self.pad_token_id = pad_token_id
        self._cutting, self._whole = _load(tokenizer_file), _load(tokenizer_file)
        self.special_tokens = special = self._whole.num_special_tokens_to_add(False)
        if max_length <= special:
            raise ValueError(
                f"max_length is {max_length}; the tokenizer alone adds {special}: give at least {special + 1}"
            )
        self._cutting.enable_truncation(max_length)
        self._room = max_length - special
        self._prefix, self._suffix = self._special_tokens()

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""
        return int(self._whole.get_vocab_size())

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer puts before and after every text."""
        bare = self._whole.encode("a", add_special_tokens=False).ids
        full = self._whole.encode("a", add_special_tokens=True).ids
        extra = len(full) - len(bare)
        at = next(i for i in range(extra + 1) if full[i : i + len(bare)] == bare)
        return full[:at], full[at + len(bare) :]

    def encode(self, texts: Sequence[str]) -> list[TextRow]:
        """One row a text, cut at `max_length`."""
        encodings = self._cutting.encode_batch([_LONE_SURROGATE.sub("\ufffd", text) for text in texts])
        return [TextRow(e.ids, e.offsets) for e in encodings]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` without the offsets, in four fifths of its time."""
        encodings = self._cutting.encode_batch_fast([_LONE_SURROGATE.sub("\ufffd", text) for text in texts])
        return [encoding.ids for encoding in encodings]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text when nothing is cut, special tokens included."""
        encodings = self._whole.encode_batch_fast([_LONE_SURROGATE.sub("\ufffd", text) for text in texts])
        return [len(e.ids) for e in encodings]

    def encode_words(self, words: Sequence[str], stride: int | None = None) -> list[Window]:
        """A list of words as windows that overlap by `stride` pieces (default: max_length / 4, at most 64).

        The words are read as one text, joined by blanks: so byte-level and SentencePiece tokenizers see the
        word boundaries they were trained on. At least one window is returned, even for an empty list.
        """
        spans, at = [], 0
        for word in words:
            spans.append((at, at + len(word)))
            at += len(word) + 1
        text = _LONE_SURROGATE.sub("\ufffd", " ".join(words))
        encoding = self._whole.encode(text, add_special_tokens=False)
        first = _first_pieces(spans, encoding.offsets)
        overlap = min(64, self.max_length // 4) if stride is None else stride
        return [
            Window(
                [*self._prefix, *encoding.ids[start:end], *self._suffix],
                [(w, p - start + len(self._prefix)) for w, p in first if low <= p < high],
            )
            for start, end, low, high in _windows(len(encoding.ids), self._room, overlap)
        ]

    def split_words(self, text: str) -> list[tuple[str, int, int]]:
        """Words of a raw text as (word, start, end): runs of letters and digits, every other sign alone."""
        return [(m.group(), m.start(), m.end()) for m in _WORD.finditer(text)]


def _load(tokenizer_file: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _first_pieces(spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(word, piece) for each word that some piece touches; both lists ascend."""
    found, piece = [], 0
    for word, (start, end) in enumerate(spans):
        while piece < len(offsets) and offsets[piece][1] <= start:
            piece += 1
        at = piece
        while at < len(offsets) and offsets[at][0] < end and offsets[at][0] == offsets[at][1]:
            at += 1  # a piece of zero width belongs to no word
        if at < len(offsets) and offsets[at][0] < end:
            found.append((word, at))
    return found


def _windows(pieces: int, room: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """(start, end, low, high) of each window: it holds pieces [start, end) and speaks for [low, high).

    Two neighbours part in the middle of their overlap, which gives each piece the larger of its two contexts.
    The last window ends with the text and is as full as the others.
    """
    step = max(1, room - overlap)
    last = max(0, pieces - room)
    starts = [*range(0, last, step), last]
    ends = [min(pieces, start + room) for start in starts]
    cuts = [0, *((after + end) // 2 for after, end in zip(starts[1:], ends, strict=False)), pieces]
    return list(zip(starts, ends, cuts, cuts[1:], strict=False))


def pad(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Int64, Int64]:
    """Ids and attention mask, both int64 [rows, longest row]; padding stands on the right."""
    if len(rows) == 1:
        ids = np.array(rows, dtype=np.int64)
        return ids, np.ones_like(ids)
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    mask = np.arange(lengths.max(initial=0))[None, :] < lengths[:, None]
    ids = np.full(mask.shape, pad_token_id, dtype=np.int64)
    ids[mask] = np.fromiter((i for row in rows for i in row), dtype=np.int64, count=int(lengths.sum()))
    return ids, mask.astype(np.int64)
