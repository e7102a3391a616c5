"""DataConfig: which text a run learns from and how it is cut into tokens.  Loads no numpy, no torch."""

from __future__ import annotations

import difflib
import json
import math
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from trainer.corpora.taskspec import CopySpec, ImagesSpec, SelectiveCopySpec, Spec, TaskSpec
from trainer.errors import CorpusError
from trainer.hints import hint
from trainer.messages import validation_line

DEFAULT_PACKAGES = (
    "fonttools",
    "huggingface-hub",
    "matplotlib",
    "mlflow",
    "mpmath",
    "networkx",
    "pandas",
    "pydantic",
    "pygments",
    "scikit-learn",
    "scipy",
    "sqlalchemy",
    "sympy",
)
"""Dependencies of this project whose wheels hold the same Python files for every Linux and macOS platform.
torch is not among them: its sources differ between the CPU and the CUDA builds; numpy's differ by Python
version."""

BYTES_VOCAB = 257
"""256 byte values and the end-of-document token; not rounded up: every id occurs.  Where alignment pays, the
model may have more rows (model.vocab_size)."""

MAX_TABLE_ENTRIES = 2**26
"""Largest table of next tokens of a synthetic source: 128 MiB in memory, a few seconds to build."""


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Paths = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class PySourceSpec(Spec):
    """The Python sources of installed, pinned packages: real text that is there on every machine, offline."""

    kind: Literal["pysource"] = "pysource"
    """Name of the source."""
    packages: Annotated[Paths, Field(min_length=1)] = DEFAULT_PACKAGES
    """Distributions whose .py files are read."""


class SyntheticSpec(Spec):
    """A seeded Markov source of unlimited tokens whose entropy rate (the irreducible loss) is known."""

    kind: Literal["synthetic"] = "synthetic"
    """Name of the source."""
    vocab_size: int = Field(default=256, ge=2, le=2**16)
    """Different tokens."""
    order: int = Field(default=2, ge=1, le=8)
    """Preceding tokens on which the next one depends."""
    zipf_exponent: float = Field(default=1.5, ge=0, le=10)
    """Exponent s of the next-token distribution p(rank) proportional to (rank + 1)^-s."""
    block_ratio: int = Field(default=8, ge=2)
    """Growth of the rank blocks within which a context permutes: 4 gives ranks 0-3, 4-15, 16-63, ...; the
    larger, the more there is to learn beyond the token frequencies."""
    seed: int = Field(default=0, ge=0)
    """Of the source itself; the run's seed only chooses which of its sequences are read."""

    @model_validator(mode="after")
    def _check_table(self) -> Self:
        entries = self.vocab_size ** (self.order + 1)
        if entries > MAX_TABLE_ENTRIES:
            largest = int(math.exp(math.log(MAX_TABLE_ENTRIES) / (self.order + 1)) + 1e-9)
            raise ValueError(
                f"vocab_size^(order + 1) = {entries:,} next tokens would have to be tabulated, more than "
                f"{MAX_TABLE_ENTRIES:,}; with order = {self.order} take vocab_size <= {largest}"
            )
        return self


class TextSpec(Spec):
    """Files, or folders of them: .txt .md .jsonl .parquet, each optionally .gz or .zst."""

    kind: Literal["text"] = "text"
    """Name of the source."""
    paths: Annotated[Paths, Field(min_length=1)]
    """Files or folders; what is found below a folder is read in the order of the relative paths."""
    text_field: str = "text"
    """Field (.jsonl) or column (.parquet) that holds the text."""


class TokensSpec(Spec):
    """Token ids made elsewhere: nanoGPT's raw files, llm.c's with a header, Megatron's .bin beside .idx."""

    kind: Literal["tokens"] = "tokens"
    """Name of the source."""
    paths: Annotated[Paths, Field(min_length=1)]
    """The .bin files, in the order in which they are read."""
    validation: Paths = ()
    """The .bin files of the held-out part; without them blocks of `paths` are held out by their hash."""
    format: Literal["auto", "raw", "llmc", "megatron"] = "auto"
    """auto: megatron where an .idx lies beside, llmc where the header is there, else raw."""
    dtype: Literal["auto", "uint16", "uint32", "int32"] = "auto"
    """Of raw files; auto: uint16 up to a vocabulary of 65536, else uint32."""
    vocab_size: int = Field(ge=2, le=2**31)
    """Ids are below this."""
    eos: int | None = Field(default=None, ge=0)
    """Id of the end of a document, where there is one."""

    @model_validator(mode="after")
    def _check_eos(self) -> Self:
        if self.eos is not None and self.eos >= self.vocab_size:
            raise ValueError(f"eos = {self.eos} is not below vocab_size = {self.vocab_size}")
        return self


class HfSpec(Spec):
    """A Hugging Face dataset, streamed through `datasets`; a local folder of data files is a name too."""

    kind: Literal["hf"] = "hf"
    """Name of the source."""
    name: str = Field(min_length=1)
    """Name on the hub (tiiuae/falcon-refinedweb) or local folder."""
    config: str | None = None
    """Configuration (subset) of the dataset."""
    split: str = "train"
    """Split that is read; the held-out part is taken from it by hash."""
    revision: str | None = None
    """Commit or tag; without one the fingerprint cannot tell when the dataset changes."""
    text_field: str = "text"
    """Column that holds the text."""
    max_documents: int | None = Field(default=None, gt=0)
    """Stop after so many documents."""
    max_bytes: int | None = Field(default=None, gt=0)
    """Stop once so many bytes of text were read."""


class BytesTokenizer(Spec):
    """Every byte is a token; one more ends a document."""

    kind: Literal["bytes"] = "bytes"
    """Name of the tokenizer."""


class BpeTokenizer(Spec):
    """Byte-level byte-pair encoding, trained on a sample of the corpus' training documents."""

    kind: Literal["bpe"] = "bpe"
    """Name of the tokenizer."""
    vocab_size: int = Field(default=512, ge=BYTES_VOCAB, le=2**20)
    """Ids, the end-of-document token included."""
    sample_bytes: int = Field(default=16 * 2**20, gt=0)
    """Bytes of text from which the merges are learned."""


class CharsTokenizer(Spec):
    """Characters: the most frequent ones of a sample of the training documents, and one id for all others."""

    kind: Literal["chars"] = "chars"
    """Name of the tokenizer."""
    vocab_size: int = Field(default=128, ge=3, le=2**20)
    """Ids, those of the other characters and of the end of a document included."""
    sample_bytes: int = Field(default=16 * 2**20, gt=0)
    """Bytes of text in which the characters are counted."""


class FileTokenizer(Spec):
    """A tokenizer.json as the `tokenizers` library writes it."""

    kind: Literal["file"] = "file"
    """Name of the tokenizer."""
    path: str
    """The tokenizer.json."""
    eos: str | None = None
    """The end-of-document token; default: the usual name that the file has."""


CorpusSpec = PySourceSpec | SyntheticSpec | TextSpec | TokensSpec | HfSpec | TaskSpec
LearnedTokenizer = BpeTokenizer | CharsTokenizer
TokenizerSpec = BytesTokenizer | LearnedTokenizer | FileTokenizer

_TASK_KINDS = ("copy", "selective-copy", "images")
IDS_KINDS = ("synthetic", "tokens", *_TASK_KINDS)
"""Corpora that are ids already: they have no tokenizer."""
_CORPUS_KINDS = ("pysource", "synthetic", "text", "tokens", "hf", *_TASK_KINDS)
_TOKENIZER_FORMS = ("bytes", "bpe", "bpe-512", "chars", "chars-96", "path/to/tokenizer.json")


def _unknown(what: str, written: str, valid: tuple[str, ...]) -> ValueError:
    close = difflib.get_close_matches(written, valid, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(valid)}"
    return ValueError(f"unknown {what} '{written}'; {hint}")


def _corpus_from(value: Any) -> Any:
    if isinstance(value, dict) and "kind" in value and value["kind"] not in _CORPUS_KINDS:
        raise _unknown("corpus kind", str(value["kind"]), _CORPUS_KINDS)
    if not isinstance(value, str):
        return value
    kind, _, rest = value.partition(":")
    if kind in ("pysource", "synthetic", *_TASK_KINDS) and not rest:
        return {"kind": kind}
    if kind == "text" and rest:
        return {"kind": kind, "paths": [rest]}
    if kind == "hf" and rest:
        return {"kind": kind, "name": rest}
    if value in ("text", "hf"):
        raise ValueError(
            f"corpus '{value}' needs a place: write '{value}:{'PATH' if value == 'text' else 'NAME'}'"
        )
    if value == "tokens":
        raise ValueError("corpus 'tokens' needs paths and vocab_size: write it as a table")
    if kind == "images":
        raise ValueError("images of a folder or file need classes: write the corpus as a table")
    raise _unknown("corpus", value, _CORPUS_KINDS)


def _tokenizer_from(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value in ("bytes", "bpe", "chars"):
        return {"kind": value}
    if match := re.fullmatch(r"(bpe|chars)-(\d+)", value):
        return {"kind": match[1], "vocab_size": int(match[2])}
    if value.endswith(".json"):
        return {"kind": "file", "path": value}
    if value == "none":
        return None
    raise _unknown("tokenizer", value, _TOKENIZER_FORMS)


class DataConfig(Spec):
    """A corpus, its tokenizer, and how much of it is held out and may be repeated."""

    corpus: Annotated[CorpusSpec, Field(discriminator="kind"), BeforeValidator(_corpus_from)] = PySourceSpec()
    """Where the text comes from; also "pysource", "synthetic", "text:PATH", "hf:NAME", "copy",
    "selective-copy" or "images"."""
    tokenizer: Annotated[
        Annotated[TokenizerSpec, Field(discriminator="kind")] | None, BeforeValidator(_tokenizer_from)
    ] = None
    """How text becomes ids; also "bytes", "bpe-512", "chars" or the path of a tokenizer.json.  Default
    bpe-512; none for synthetic, tokens and the tasks, which are ids already."""
    heldout_fraction: float = Field(default=0.01, gt=0, lt=1)
    """Share of the documents, chosen by their hash, that is never trained on."""
    max_epochs: float = Field(default=1.0, gt=0)
    """How often the corpus may be repeated in a run."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"corpus": data}
        if not isinstance(data, dict):
            return data
        try:
            corpus = _corpus_from(data.get("corpus", "pysource"))
        except ValueError:
            return data  # The field itself complains, with its own place.
        kind = corpus.get("kind") if isinstance(corpus, dict) else getattr(corpus, "kind", None)
        if "tokenizer" not in data and kind in ("pysource", "text", "hf"):
            return {**data, "tokenizer": BpeTokenizer()}
        return data

    @model_validator(mode="after")
    def _check_tokenizer(self) -> Self:
        ids_already = self.corpus.kind in IDS_KINDS
        if ids_already and self.tokenizer is not None:
            raise ValueError(f"corpus '{self.corpus.kind}' holds token ids already; leave tokenizer out")
        if not ids_already and self.tokenizer is None:
            raise ValueError(
                f"corpus '{self.corpus.kind}' is text; give a tokenizer: bytes, bpe-512 or a file"
            )
        return self

    @property
    def computed(self) -> bool:
        """Whether the sequences are drawn when they are asked for, so that nothing has to be prepared."""
        drawn = isinstance(self.corpus, ImagesSpec) and self.corpus.drawn
        return drawn or isinstance(self.corpus, SyntheticSpec | CopySpec | SelectiveCopySpec)

    @property
    def vocab_size(self) -> int:
        """Ids are below this; known without preparing (CorpusError where a tokenizer file cannot be read)."""
        match self.corpus, self.tokenizer:
            case (SyntheticSpec() | TokensSpec() | CopySpec() | SelectiveCopySpec() | ImagesSpec()) as ids, _:
                return ids.vocab_size
            case _, (BpeTokenizer() | CharsTokenizer()) as tokenizer:
                return tokenizer.vocab_size
            case _, FileTokenizer() as tokenizer:
                return file_vocab_size(tokenizer.path)
        return BYTES_VOCAB

    @property
    def label(self) -> str:
        """The corpus and its tokenizer in a few words; no more than base names of paths."""
        match self.corpus:
            case SyntheticSpec(vocab_size=v, order=k, zipf_exponent=s, seed=seed):
                return f"synthetic (vocabulary {v}, order {k}, Zipf {s:g}, seed {seed})"
            case (CopySpec() | SelectiveCopySpec()) as task:
                return f"{task.kind} ({task.n_tokens} tokens of {task.alphabet}, seed {task.seed})"
            case ImagesSpec(source=source, classes=classes, side=side, levels=levels, seed=seed) as images:
                what = f"shapes, seed {seed}" if images.drawn else _names((source,))
                return f"images ({what}, {classes} classes, {side} x {side}, {levels} greys)"
            case TokensSpec(paths=paths):
                return f"tokens {_names(paths)}"
            case TextSpec(paths=paths):
                source = f"text {_names(paths)}"
            case HfSpec(name=name, config=config):
                source = f"hf {_names((name,)) if Path(name).is_absolute() else name}"
                source += f"/{config}" if config else ""
            case PySourceSpec(packages=packages):
                source = "pysource" if packages == DEFAULT_PACKAGES else f"pysource ({', '.join(packages)})"
        match self.tokenizer:
            case BpeTokenizer(kind=kind, vocab_size=v) | CharsTokenizer(kind=kind, vocab_size=v):
                return f"{source}, {kind}-{v}"
            case FileTokenizer(path=path):
                return f"{source}, {_names((path,))}"
        return f"{source}, bytes"

    def identity(self) -> dict[str, Any]:
        """All fields but where files lie: with the fingerprint it identifies the data on any machine."""
        dump = self.model_dump(mode="json")
        corpus, tokenizer = dump["corpus"], dump["tokenizer"] or {}
        for key in ("paths", "validation"):
            corpus.pop(key, None)
        if isinstance(self.corpus, HfSpec) and Path(self.corpus.name).expanduser().is_dir():
            corpus.pop("name")
        if isinstance(self.corpus, ImagesSpec) and not self.corpus.drawn:
            corpus.pop("source")
            corpus.pop("heldout")
        tokenizer.pop("path", None)
        return dump

    def command(self, results: Path | None = None) -> str:
        """The shell command that prepares this corpus below `results`; `parse_data` reads its argument."""
        given = self.model_dump(mode="json", exclude_unset=True, exclude={"max_epochs"})
        default = DataConfig(corpus=self.corpus)
        if isinstance(self.corpus, PySourceSpec) and self.corpus == PySourceSpec():
            given["corpus"] = "pysource"
        simple = default.tokenizer == self.tokenizer and default.heldout_fraction == self.heldout_fraction
        if simple and given.get("corpus", "pysource") == "pysource":
            text = "pysource"
        else:
            if "corpus" in given and isinstance(given["corpus"], dict):
                given["corpus"]["kind"] = self.corpus.kind
            if self.tokenizer is not None:
                given["tokenizer"] = self.tokenizer.model_dump(mode="json")
            text = json.dumps(given, separators=(",", ":"))
        if results is None:
            return f"python -m trainer data {shlex.quote(text)}"
        return hint(["data", text], results, "trainer")


def parse_data(text: str) -> DataConfig:
    """Read a DataConfig from a command-line argument: a shorthand ("pysource") or a JSON object.

    Raises CorpusError where it is neither JSON nor a shorthand, or where a field is wrong.
    """
    try:
        return DataConfig.model_validate(json.loads(text) if text.lstrip().startswith("{") else text)
    except ValidationError as error:
        raise CorpusError(validation_line(error, DataConfig, "data")) from None
    except json.JSONDecodeError as error:
        raise CorpusError(f'data: not JSON ({error}); write it like \'{{"corpus": "pysource"}}\'') from None


def file_vocab_size(path: str) -> int:
    """Ids of a tokenizer.json: one more than the largest in its vocabulary and its added tokens."""
    content = read_tokenizer_json(path)
    vocab = content["model"].get("vocab", {})
    ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
    ids += [token["id"] for token in content.get("added_tokens") or []]
    if not ids:
        raise CorpusError(f"{path}: the tokenizer has an empty vocabulary; give another tokenizer.json")
    return max(ids) + 1


def read_tokenizer_json(path: str) -> dict[str, Any]:
    """The content of a tokenizer.json, or CorpusError where it is none."""
    remedy = "give data.tokenizer.path a tokenizer.json written by the tokenizers library"
    try:
        content = json.loads(Path(path).expanduser().read_bytes())
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror}; {remedy}") from None
    except ValueError as error:
        raise CorpusError(f"{path}: not JSON ({error}); {remedy}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CorpusError(f"{path}: not a tokenizer.json (no 'model'); {remedy}")
    return content


def _names(paths: tuple[str, ...]) -> str:
    first = Path(paths[0]).name or str(paths[0])
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
