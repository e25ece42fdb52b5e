"""Tables 1 and 2 of MCL as one resumable command: `python -m evaluate.ablation`."""
