"""What all tests share: one torch thread a worker, since workers that compete for cores wait for each other."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
