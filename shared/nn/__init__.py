"""Networks: backbones, heads, batch norm over groups, inflation, counting, checkpoints."""
