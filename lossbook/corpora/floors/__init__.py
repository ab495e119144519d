r"""Exact floors: the lowest loss that any model can reach on the hidden Markov language.

The ideal predictor of a token knows the true distribution of the texts and everything the model
sees. Its expected loss is the conditional entropy of the token, and every other predictor ``p``
scores worse by :math:`\mathrm{KL}(q \| p)`. All quantities follow from the forward and backward
recursions (Rabiner 1989, section III.A, equations 19-20 and 24-25)

.. math:: \alpha_{t+1}(j) = \sum_i \alpha_t(i)\, A_{ij}\, e_{t+1}(j), \qquad
          \beta_t(i) = \sum_j A_{ij}\, e_{t+1}(j)\, \beta_{t+1}(j),

scaled at every step so that nothing underflows (his section V.A). For the causal floor
:math:`e_t(j) = E(j, x_t)`. For the masked floor the visible token is the output of a noisy
channel, and :math:`e_t` becomes a polynomial in the number of selected positions.
"""

from lossbook.corpora.floors.base import Floor
from lossbook.corpora.floors.causal import DIRECTIONS, causal_floor, run_together
from lossbook.corpora.floors.infilling import infilling_floor, length_pmf, span_budget
from lossbook.corpora.floors.masked import SELECTIONS, masked_floor, selection_pmf
from lossbook.corpora.floors.pairs import pair_floor, sentence_lengths, topic_floor

__all__ = [
    "DIRECTIONS",
    "SELECTIONS",
    "Floor",
    "causal_floor",
    "infilling_floor",
    "length_pmf",
    "masked_floor",
    "pair_floor",
    "run_together",
    "selection_pmf",
    "sentence_lengths",
    "span_budget",
    "topic_floor",
]
