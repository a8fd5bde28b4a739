"""The stages in a row: from paths and settings to a report.

``scan`` is what the command line and library users call.
"""

from nndiag.pipeline.scanning import Outcome, scan
from nndiag.pipeline.settings import Listener, ScanSettings

__all__ = ["Listener", "Outcome", "ScanSettings", "scan"]
