"""Actions of persons at keyframes: `detection` (AVA), from frozen features or fine-tuned."""
