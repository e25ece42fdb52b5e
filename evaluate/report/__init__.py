"""What an evaluation leaves for readers: metrics.json, report.html, figures and comparisons."""
