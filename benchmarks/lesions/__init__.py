"""How often the findings are right: known lesions planted in known nodes of trained networks.

``python -m benchmarks.lesions --output benchmarks/LESIONS.md`` trains the networks, plants, scans and counts.
"""
