"""How good are the neighbours, on real labelled data: `python -m bench.quality`. Data, splits, methods, measures."""
