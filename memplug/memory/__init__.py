"""The key memory: which stored subject, if any, a row of hidden states speaks of.

One file, one word: `keys` KeyMemory, what others use · `record` the stored keys · `exact` the definition of a
match, and the scan by products · `signs` the scan by compressed keys · `faiss_search` the scan by FAISS on a
GPU · `votes` the rule that elects.
"""

from .exact import span_similarity, unit_rows
from .keys import KeyMemory, MatchState
from .votes import Found, agreed, count_votes, quorum_of, voting

__all__ = [
    "Found", "KeyMemory", "MatchState", "agreed", "count_votes", "quorum_of", "span_similarity",
    "unit_rows", "voting",
]  # fmt: skip
