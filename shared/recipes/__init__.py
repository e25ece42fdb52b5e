"""pipelines.yaml as frozen dataclasses: settings of preprocessing and of pre-training, checked by name."""
