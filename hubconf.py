"""Entry point for torch.hub: `net, transform = torch.hub.load(REPOSITORY, "backbone", path="DIR")`."""

dependencies = ["google_crc32c", "numcodecs", "numpy", "safetensors", "simplejpeg", "torch", "yaml"]


def backbone(path, device="cpu"):
    """A trained backbone in eval mode and its input transform, from a folder of `python -m evaluate.export --hub`, a
    .safetensors file of `--out`, or a checkpoint; as `shared.nn.load`."""
    import shared.nn

    return shared.nn.load(path, device)
