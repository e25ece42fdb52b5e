"""Supervised training of all layers: `finetune`, its training loop, labelled clips and their augmentation."""
