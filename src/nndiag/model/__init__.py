"""From a layer list or a factory, and tensors, to a module that holds its weights, and the optimiser that
trained it.

``sequential``, ``factory``, ``from_config``: build. ``fit``: find the weights and load them. ``optimizer``:
match its state. Nothing here opens a checkpoint: places and saved optimisers come in through protocols.
"""
