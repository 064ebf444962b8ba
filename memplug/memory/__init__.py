"""The key memory: which stored subject, if any, a row of hidden states speaks of.

One file, one word: `keys` KeyMemory, what others use · `record` the stored keys · `search` which layers are
looked at when · `match` from hidden states to the entries above their threshold · `small`, `products`,
`signs` scans that propose · `spans` the check that decides · `votes` the election · `stream` texts given in
pieces · `scores` every similarity, to explain a result · `gpu` FAISS on a GPU.
"""

from memplug.memory.keys import KeyMemory
from memplug.memory.scores import Scores
from memplug.memory.stream import MatchState
from memplug.memory.votes import Hits

__all__ = ["Hits", "KeyMemory", "MatchState", "Scores"]
