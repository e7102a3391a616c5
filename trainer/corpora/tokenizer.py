"""From text to ids: bytes, byte-level BPE or characters learned here, any tokenizer.json: one Encoder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trainer.corpora.files import digest_of, sha256_file
from trainer.corpora.spec import (
    BYTES_VOCAB,
    BpeTokenizer,
    BytesTokenizer,
    CharsTokenizer,
    FileTokenizer,
    LearnedTokenizer,
    TokenizerSpec,
    file_vocab_size,
    read_tokenizer_json,
)
from trainer.errors import CorpusError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

EOS = "<|endoftext|>"
"""Name of the end-of-document token of the tokenizers made here."""

_MAX_REMEMBERED = 2**25
"""Characters of remembered words, so that memory stays bounded on any corpus (a few hundred MB)."""

_ASCII_WORD = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\t-\r A-Za-z0-9]+|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"
)
"""How ByteLevel cuts ASCII text into words (the pattern of GPT-2, its classes written out)."""

_LINE_END = re.compile(r"(?<=[!-~])(?=\n)")

_EOS_NAMES = (EOS, "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>", "[SEP]")


class Encoder(Protocol):
    """Turns documents into ids."""

    vocab_size: int
    """Ids are below this."""
    eos: int
    """Id put after each document."""

    def encode(self, texts: list[str]) -> list[NDArray[np.integer[Any]]]:
        """Ids of each text, without the end-of-document token."""
        ...

    def token_bytes(self) -> NDArray[np.int32]:
        """Bytes of text that each id stands for, (vocab_size,); 0 for ids that are no text."""
        ...

    def json(self) -> str:
        """The tokenizer.json."""
        ...


def tokenizer_fingerprint(spec: TokenizerSpec) -> str:
    """What the tokenizer does, wherever its file lies."""
    if isinstance(spec, FileTokenizer):
        return digest_of("file", sha256_file(Path(spec.path).expanduser()), spec.eos)
    return digest_of(spec.model_dump(mode="json"))


def byte_characters() -> list[str]:
    """The character by which byte-level tokenizers write each byte: itself, or one from 256 on."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def learn(spec: LearnedTokenizer, sample: Iterator[str]) -> str:
    """The tokenizer.json that `spec` makes of a sample of the corpus."""
    if isinstance(spec, BpeTokenizer):
        return train_bpe(spec, sample)
    from trainer.corpora.chars import train_chars

    return train_chars(spec, sample)


def train_bpe(spec: BpeTokenizer, sample: Iterator[str]) -> str:
    """Learn the merges from `sample` and return the tokenizer.json.

    The vocabulary is the end-of-document token, the 256 bytes, then merges by frequency, ties by id, so the
    same sample gives the same tokenizer.  A sample too poor in pairs gives fewer ids than spec.vocab_size.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(EOS, special=True)],
        initial_alphabet=byte_characters(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer.to_str()


def encoder_for(spec: TokenizerSpec, json: str | None = None) -> Encoder:
    """The encoder of `spec`; `json` is the tokenizer.json of one that was learned from the corpus."""
    if isinstance(spec, BytesTokenizer):
        return BytesEncoder()
    if isinstance(spec, BpeTokenizer):
        assert json is not None
        return BpeEncoder(json, spec.vocab_size, EOS, f"bpe-{spec.vocab_size}")
    if isinstance(spec, CharsTokenizer):
        from trainer.corpora.chars import CharsEncoder

        assert json is not None
        return CharsEncoder(json, spec)
    vocab_size = file_vocab_size(spec.path)
    names = {token["content"] for token in read_tokenizer_json(spec.path).get("added_tokens") or []}
    eos = spec.eos or next((name for name in _EOS_NAMES if name in names), None)
    if eos is None:
        raise CorpusError(
            f"{spec.path}: has no end-of-document token of a usual name; set data.tokenizer.eos to one of "
            f"its tokens"
        )
    return JsonEncoder(Path(spec.path).expanduser().read_text("utf-8"), vocab_size, eos, spec.path)


class BytesEncoder:
    """Id = byte; 256 ends a document."""

    vocab_size = BYTES_VOCAB
    eos = 256

    def encode(self, texts: list[str]) -> list[NDArray[np.integer[Any]]]:
        """Bytes of each text in UTF-8."""
        import numpy as np

        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def token_bytes(self) -> NDArray[np.int32]:
        """One for each byte, none for the end of a document."""
        import numpy as np

        return np.array([1] * 256 + [0], dtype=np.int32)

    def json(self) -> str:
        """The same map as a tokenizer.json without merges."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        vocab = {character: byte for byte, character in enumerate(byte_characters())}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(EOS, special=True)])
        return tokenizer.to_str()


class JsonEncoder:
    """Encodes with the `tokenizers` library, on all cores; names of special tokens in a text are text."""

    def __init__(self, json: str, vocab_size: int, eos: str, name: str) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Tokenizer = Tokenizer.from_str(json)
        except Exception as error:  # The Rust library raises bare Exceptions.
            text = " ".join(str(error).split())
            raise CorpusError(f"{name}: not a tokenizer.json ({text}); give another file") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._json = json
        self.vocab_size = vocab_size
        found = self._tokenizer.token_to_id(eos)
        if found is None:
            raise CorpusError(f"{name}: has no token '{eos}'; set data.tokenizer.eos to one that it has")
        self.eos: int = found

    def encode(self, texts: list[str]) -> list[NDArray[np.integer[Any]]]:
        """Ids of each text."""
        import numpy as np

        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def token_bytes(self) -> NDArray[np.int32]:
        """Exact for byte-level tokenizers; for others the piece's length, which normalisers may change."""
        import numpy as np

        out = np.zeros(self.vocab_size, dtype=np.int32)
        byte_level = '"ByteLevel"' in self._json
        special = set(self._tokenizer.get_added_tokens_decoder())
        for token, token_id in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if token_id not in special:
                out[token_id] = len(token) if byte_level else _piece_bytes(token)
        for token_id, added in self._tokenizer.get_added_tokens_decoder().items():
            out[token_id] = 0 if added.special else len(added.content.encode())
        return out

    def json(self) -> str:
        """As it was given."""
        return self._json


class BpeEncoder(JsonEncoder):
    """A BPE trained here: the ids of its tokenizer.json, several times as fast.

    Such a BPE encodes each word alone, and a corpus has few different words: they are remembered, only new
    ones encoded.  A line with other than ASCII characters counts as one word.
    """

    def __init__(self, json: str, vocab_size: int, eos: str, name: str) -> None:
        super().__init__(json, vocab_size, eos, name)
        self._dtype = "uint16" if vocab_size <= 2**16 else "uint32"
        self._known: dict[str, bytes] = {}
        self._size = 0

    def encode(self, texts: list[str]) -> list[NDArray[np.integer[Any]]]:
        """Ids of each text."""
        import numpy as np

        if self._size > _MAX_REMEMBERED:
            self._known.clear()
            self._size = 0
        words = [_words(text) for text in texts]
        new = sorted(set().union(*words) - self._known.keys())
        for word, ids in zip(new, super().encode(new), strict=True):
            self._known[word] = ids.astype(self._dtype).tobytes()
        self._size += sum(map(len, new))
        find = self._known.__getitem__
        return [np.frombuffer(b"".join(map(find, found)), dtype=self._dtype) for found in words]


def _words(text: str) -> list[str]:
    """Cut a text into parts that ByteLevel's own pattern would keep apart as well."""
    if text.isascii():
        return _ASCII_WORD.findall(text)
    out: list[str] = []
    # No word goes on from a visible character into white space, so a line's end is always between two.
    for line in _LINE_END.split(text):
        out += _ASCII_WORD.findall(line) if line.isascii() else [line]
    return out


def _piece_bytes(token: str) -> int:
    """Bytes of a SentencePiece or WordPiece token: <0x0A> is one byte, ▁ a space, ## joins words."""
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
        return 1
    return len(token.removeprefix("##").replace("▁", " ").encode())
