"""What a model is measured on: the data and the loss. Import the modules, not this package."""
