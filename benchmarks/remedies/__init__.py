"""Do the remedies help: killed networks trained on with and without them, plasticity, and what deployment saves."""
