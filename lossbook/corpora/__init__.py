"""Corpora: a language with known floors, real text, tokenizers."""

from lossbook.corpora.base import SPLITS, Corpus
from lossbook.corpora.context_target import ContextTargets
from lossbook.corpora.floors import (
    Floor,
    causal_floor,
    infilling_floor,
    masked_floor,
    run_together,
    selection_pmf,
)
from lossbook.corpora.hidden_markov import HiddenMarkovLanguage
from lossbook.corpora.text import TextCorpus
from lossbook.corpora.tokenizers import SubwordVocabulary, train_tokenizer
from lossbook.corpora.vocabulary import SPECIAL_TOKENS, Vocabulary

__all__ = [
    "SPECIAL_TOKENS",
    "SPLITS",
    "ContextTargets",
    "Corpus",
    "Floor",
    "HiddenMarkovLanguage",
    "SubwordVocabulary",
    "TextCorpus",
    "Vocabulary",
    "causal_floor",
    "infilling_floor",
    "masked_floor",
    "run_together",
    "selection_pmf",
    "train_tokenizer",
]
