"""Corpora behind one interface: what they are (fingerprint), making them ready (prepare), reading (Corpus).

Importing this and computing the fingerprint of pysource or synthetic load neither torch nor numpy nor pandas.
"""

from trainer.corpora.corpus import Corpus, capacity, open_corpus
from trainer.corpora.fingerprints import fingerprint
from trainer.corpora.preparation import prepare
from trainer.corpora.spec import DataConfig, parse_data

__all__ = ["Corpus", "DataConfig", "capacity", "fingerprint", "open_corpus", "parse_data", "prepare"]
