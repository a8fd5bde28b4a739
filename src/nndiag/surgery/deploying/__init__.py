"""Goal ``deploy``: nodes that do nothing are taken out of a finished network, with all that depends on them.

One forward pass shows which places of which parameters go together (``following``), what reads them and which values
(``consumers``); from that follows what can go (``deciding``), and the smaller network is made (``editing``) and compared
with the old one on the probe (``agreement``). Nothing is guessed from the names or the order of modules.
"""

from nndiag.surgery.deploying.deploy import Deployed, Done, deploy

__all__ = ["Deployed", "Done", "deploy"]
