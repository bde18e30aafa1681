"""What a model is to the rest: loading, the forward pass, probes and the cost curve."""
