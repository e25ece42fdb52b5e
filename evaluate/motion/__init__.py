"""Where a network looks and what it knows of motion: `saliency` and `controls`, their maps, probes and truth."""
