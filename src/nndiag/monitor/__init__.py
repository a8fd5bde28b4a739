"""Watching a network while it trains: the measures of a scan, from ordinary training steps.

Only a step that is measured is touched: one forward pass runs under a watch, and the gradients that training made are
read. What the numbers mean is the rules' business, as in a scan, and what is written is a scan's report. Frameworks
(Lightning, Transformers) must not be imported here, unless it is asked for their callbacks.
"""

from nndiag.monitor.callbacks import lightning_callback, trainer_callback
from nndiag.monitor.healing import Correction, HealingSettings
from nndiag.monitor.monitor import Monitor

__all__ = ["Correction", "HealingSettings", "Monitor", "lightning_callback", "trainer_callback"]
