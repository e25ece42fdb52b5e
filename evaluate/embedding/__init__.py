"""Features as files: what is embedded, the work shared out, what OUT keeps of it, and the nearest videos."""
