"""Goal ``deploy``: nodes that do nothing are taken out of a finished network, with all that depends on them.

One forward pass shows which places of which parameters go together (``following``), what reads them and which
values (``consumers``); from that follows what can go (``deciding``), and the smaller network is made (``editing``)
and compared with the old one on the probe (``agreement``). Nothing is guessed from the names or the order of modules.

The dependency graph of Torch-Pruning 1.6 was tried first. It prunes chains, ``flatten`` and concatenations right, but
takes channels from the wrong places after a ``permute``, takes living units with a dead one through a residual
addition, a LayerNorm or a softmax, ignores what a unit's bias still puts out behind a convolution of a channel each,
leaves networks that do not run where heads are split or groups cut, and knows neither raw parameters nor the ``Conv1D``
of GPT-2; it folds and merges nothing.
"""

from nndiag.surgery.deploying.cost import Cost, cost
from nndiag.surgery.deploying.deploy import Deployed, Done, deploy
from nndiag.surgery.deploying.sequential import as_toml, smaller_sequential
from nndiag.surgery.deploying.widths import Widths, resize

__all__ = ["Cost", "Deployed", "Done", "Widths", "as_toml", "cost", "deploy", "resize", "smaller_sequential"]
