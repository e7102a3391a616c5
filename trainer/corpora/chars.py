"""The character-level tokenizer: frequent characters one by one, all others as one id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from trainer.corpora.spec import CharsTokenizer
from trainer.corpora.tokenizer import EOS, JsonEncoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OTHER_CHARACTER = "\ufffd"
"""How the id of all other characters is written; the character itself is one of them."""

END, OTHER, FIRST = 0, 1, 2
"""Ids of the end of a document, of other characters, and of the most frequent character."""

_CODES = 0x110000
_COUNT_AT_ONCE = 2**20


def train_chars(spec: CharsTokenizer, sample: Iterable[str]) -> str:
    """Choose the characters from `sample` and return the tokenizer.json.

    The most frequent come first, ties by code point; a sample of few different ones gives fewer ids than
    spec.vocab_size.
    """
    import numpy as np
    from tokenizers import AddedToken, Tokenizer, decoders, models

    counts = np.zeros(_CODES, dtype=np.int64)
    for text in _joined(sample):
        counts += np.bincount(_codes(text), minlength=_CODES)
    counts[ord(OTHER_CHARACTER)] = 0
    chosen = np.argsort(-counts, kind="stable")[: min(spec.vocab_size - FIRST, int((counts > 0).sum()))]
    vocab = {EOS: END, OTHER_CHARACTER: OTHER}
    vocab |= {chr(code): number for number, code in enumerate(chosen.tolist(), FIRST)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=OTHER_CHARACTER, fuse_unk=False))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(EOS, special=True)])
    return tokenizer.to_str()


def _joined(sample: Iterable[str]) -> Iterator[str]:
    """The sample in pieces of about a million characters: counting costs the same for a short one."""
    pieces, size = [], 0
    for text in sample:
        pieces.append(text)
        size += len(text)
        if size >= _COUNT_AT_ONCE:
            yield "".join(pieces)
            pieces, size = [], 0
    yield "".join(pieces)


def _codes(text: str) -> NDArray[np.uint32]:
    import numpy as np

    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


class CharsEncoder(JsonEncoder):
    """The ids of its tokenizer.json, by one look into a table of all code points."""

    def __init__(self, json: str, spec: CharsTokenizer) -> None:
        import numpy as np

        super().__init__(json, spec.vocab_size, EOS, f"chars-{spec.vocab_size}")
        known = self._tokenizer.get_vocab(with_added_tokens=False)
        self._characters = {
            token: number for token, number in known.items() if number >= FIRST and len(token) == 1
        }
        self._table: NDArray[np.integer[Any]] = np.full(
            _CODES, OTHER, dtype=np.uint16 if spec.vocab_size <= 2**16 else np.uint32
        )
        for character, number in self._characters.items():
            self._table[ord(character)] = number

    def encode(self, texts: list[str]) -> list[NDArray[np.integer[Any]]]:
        """Ids of each text."""
        return [self._table[_codes(text)] for text in texts]

    def token_bytes(self) -> NDArray[np.int32]:
        """Bytes of each known character in UTF-8; 0 for the others, see `with_other_bytes`."""
        import numpy as np

        out = np.zeros(self.vocab_size, dtype=np.int32)
        for character, number in self._characters.items():
            out[number] = len(character.encode())
        return out


def with_other_bytes(
    token_bytes: NDArray[np.int32], ids: NDArray[np.unsignedinteger[Any]], n_bytes: int
) -> NDArray[np.int32]:
    """The table with the mean bytes of the other characters, rounded to whole ones.

    Args:
        token_bytes: bytes of the known characters, (vocab_size,).
        ids: of a text.
        n_bytes: of that text in UTF-8, from which the known characters' bytes are taken off.
    """
    import numpy as np

    counts = np.zeros(len(token_bytes), dtype=np.int64)
    for start in range(0, len(ids), _COUNT_AT_ONCE):
        counts += np.bincount(ids[start : start + _COUNT_AT_ONCE], minlength=len(token_bytes))
    out = token_bytes.copy()
    if counts[OTHER]:
        out[OTHER] = round((n_bytes - int(counts @ token_bytes)) / int(counts[OTHER]))
    return out
