"""Networks: backbones, heads, batch norm over groups, inflation, counting, checkpoints. `shared.nn.load(path)` opens a
trained one."""

from shared.nn.exported import load

__all__ = ["load"]
