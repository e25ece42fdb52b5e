"""From packs to the views of a training step: clip indices, draws, samples, loader, ring and views."""
